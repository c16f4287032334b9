//! What must hold of a world: after every event, and when nothing can happen any more.

use dsm_core::protocol::{Grant, Message, PageGrant, PageState, Right, Walk};
use dsm_core::{Access, Page, Version};

use super::memory::Mapping;
use super::script::{Config, Op};
use super::world::{Envelope, Stance, World};

impl World {
    /// What must hold of the rights to `page` after every event.
    pub fn check_page_rights(&self, page: Page) -> Result<(), String> {
        let mut writers = 0;
        let mut readers = 0;
        let mut sharers = 0;
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.alive) {
            let state = node.protocol.state(page);
            let mapping = node.memory.mapping(page);
            let agrees = matches!(
                (state, mapping),
                (PageState::Modified, Mapping::Write)
                    | (PageState::Shared, Mapping::Read)
                    | (PageState::Invalid | PageState::Lost, Mapping::None | Mapping::Poisoned)
                    | (PageState::WalkShared, Mapping::Write | Mapping::None | Mapping::Poisoned)
            );
            if !agrees {
                return Err(format!(
                    "rights: {page:?} is {state:?} but {mapping:?} at node {index}"
                ));
            }
            if state == PageState::WalkShared {
                sharers += 1;
                continue;
            }
            writers += usize::from(mapping == Mapping::Write);
            readers += usize::from(mapping == Mapping::Read);
            if node.memory.allows(page, Access::Read) {
                self.check_latest(index, page)?;
            }
        }
        if sharers > 0 && writers + readers > 0 {
            return Err(format!("rights: {page:?} is walk-shared by some only"));
        }
        if writers > 1 || writers == 1 && readers > 0 {
            return Err(format!(
                "one writer or many readers: {page:?} has {writers} and {readers}"
            ));
        }
        Ok(())
    }

    /// Rights as above, and one owner, or one grant of ownership under way.
    pub fn check_page(&self, config: &Config, page: Page) -> Result<(), String> {
        self.check_page_rights(page)?;
        let owners =
            self.nodes.iter().filter(|node| node.alive && node.protocol.owns(page)).count()
                + self.under_way().filter(|e| self.gives(config, e, page).is_some()).count();
        if owners > 1 || owners == 0 && !self.lost {
            return Err(format!("one owner: {page:?} has {owners}"));
        }
        Ok(())
    }

    /// The version from which the receiver of this message will be the owner of `page`.
    pub fn gives(&self, config: &Config, envelope: &Envelope, page: Page) -> Option<Version> {
        let (pages, lease): (&[PageGrant], _) = match &envelope.message {
            Message::Grant(Grant { pages, lease, .. }) => (pages, *lease),
            Message::HandOver(hand_over) => (&hand_over.pages, None),
            Message::Walk(Walk::Offer(offer)) if offer.page == page => {
                return Some(offer.version.next());
            }
            _ => return None,
        };
        let block = |page: Page| page.0 / config.lease_pages;
        if lease.is_some_and(|start| block(start) == block(page)) {
            return Some(Version::ZERO.next());
        }
        pages
            .iter()
            .find(|granted| {
                granted.page == page && matches!(granted.right, Right::Ownership { .. })
            })
            .map(|granted| granted.version.next())
    }

    /// Following hints from any node ends at the owner, or where ownership is under way to.
    pub fn check_hints(&self, config: &Config, page: Page) -> Result<(), String> {
        for start in 0..self.nodes.len() {
            let mut at = start;
            let mut since = None;
            loop {
                let node = &self.nodes[at];
                if !node.alive {
                    break;
                }
                let Some((owner, owner_since)) = node.protocol.probable_owner(page) else { break };
                if since.is_some_and(|since| since > owner_since) {
                    let under_way = self
                        .under_way()
                        .any(|e| e.to.index() == at && self.gives(config, e, page) == since);
                    if under_way || self.changes > 0 {
                        break;
                    }
                    return Err(format!("hints: from node {start}, {page:?} ends at node {at}"));
                }
                // After a loss, hints begin anew at version 0: see `check_recovered`.
                let anew = self.changes > 0 && owner_since == Version::ZERO;
                if since == Some(owner_since) && anew {
                    break;
                }
                if since == Some(owner_since) {
                    return Err(format!("hints: from node {start}, {page:?} stays at {since:?}"));
                }
                since = Some(owner_since);
                at = owner.index();
            }
        }
        Ok(())
    }

    /// Holds that are complete keep their pages.
    pub fn check_holds(&self, config: &Config) -> Result<(), String> {
        for (thread, script) in self.threads.iter().zip(&config.scripts) {
            if thread.stance != Stance::Holding {
                continue;
            }
            let Op::Hold(pages, access) = &script.ops[usize::from(thread.next)] else { continue };
            let memory = &self.nodes[script.node].memory;
            // The region's end may poison a held page, like any other.
            let gone = |page: Page| {
                page.0 < config.pages
                    && memory.mapping(page) != Mapping::Poisoned
                    && !memory.allows(page, *access)
            };
            if let Some(page) = pages.iter().find(|page| gone(**page)) {
                return Err(format!("holds: node {} lost {page:?}", script.node));
            }
        }
        Ok(())
    }

    /// Nothing can happen any more: then everything must be over.
    pub fn check_end(&self, config: &Config) -> Result<(), String> {
        for (index, (thread, script)) in self.threads.iter().zip(&config.scripts).enumerate() {
            let over = usize::from(thread.next) == script.ops.len();
            if thread.stance != Stance::Dead && !over {
                let what = format!("deadlock: thread {index} is {:?}\n", thread.stance);
                return Err(what + &self.describe());
            }
        }
        if config.features.recover {
            self.check_recovered(config)?;
        }
        if config.features.zeros && !self.lost {
            self.check_touches(config)?;
        }
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.alive) {
            let goes_on = !self.lost || config.features.recover;
            if goes_on && node.protocol.room_given() > 0 {
                return Err(format!("room: node {index} keeps frames free for ever"));
            }
            for page in (0..config.pages).map(Page) {
                if !self.lost && node.protocol.state(page) == PageState::WalkShared {
                    self.check_latest(index, page)?;
                }
            }
            if !node.protocol.is_idle() {
                let what = format!("idle: something is under way at node {index} for ever\n");
                return Err(what + &self.describe());
            }
        }
        Ok(())
    }

    /// What is under way at every node.
    pub fn describe(&self) -> String {
        let nodes = self.nodes.iter().enumerate().filter(|(_, node)| node.alive);
        nodes
            .map(|(index, node)| format!("  node {index}: {}\n", node.protocol.describe()))
            .collect()
    }
}
