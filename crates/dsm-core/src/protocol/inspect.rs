//! Looks inside a machine, for the model checker.

use super::Protocol;
use super::table::Role;
use crate::types::{NodeId, Page, Version};

impl Protocol {
    /// The probable owner of a page not owned here, and since which version it is believed to be.
    pub fn probable_owner(&self, page: Page) -> Option<(NodeId, Version)> {
        match self.table.get(page).role {
            Role::Owner { .. } => None,
            Role::Holder { owner, owner_since } => Some((owner, owner_since)),
        }
    }

    /// Whether a first touch of the lease block of `page` has been announced here.
    pub fn was_touched(&self, page: Page) -> bool {
        self.table.was_touched(page)
    }

    /// What is under way at this node, for a person to read.
    pub fn describe(&self) -> String {
        let Self { pending, outbound, leasing, episodes, recovery, .. } = self;
        format!("{pending:?}\n    {outbound:?} {leasing:?}\n    {episodes:?}\n    {recovery:?}")
    }
}
