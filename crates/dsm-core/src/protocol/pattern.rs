//! What is worth asking for along with a page: the next of a scan, the rest of a convoy.

use std::collections::BTreeMap;

use crate::types::{Access, Page, ThreadId, Version};

use super::message::COMPANIONS_MAX;

/// Most scans followed at a time; the least recent is forgotten.
const STREAMS_MAX: usize = 64;
/// Largest distance of two faults that may belong to one scan, in pages.
const STRIDE_MAX: i64 = 64;
/// Most convoy leaders remembered.
const LEADERS_MAX: usize = 1024;
/// Confidence from which a follower is asked for with its leader, if that was never for nothing.
const CONFIDENT: u8 = 2;
/// The same where guesses are poor.
const CERTAIN: u8 = 4;
/// Failures that are counted: each doubles what a guess takes.
const FAILURES_MAX: u8 = 5;
/// Most pages followed until they leave.
const CAME_MAX: usize = 1024;
/// Most pages of which guesses are remembered.
const GUESSES_MAX: usize = 1024;
/// One request in this many leaves one follower out, to see whether it is still needed.
const PROBE_EVERY: u32 = 8;

/// Makes room for `page` in what is remembered of at most `max` pages. Any victim will do: what is still
/// of use is learned again.
pub(super) fn make_room<T>(of: &mut BTreeMap<Page, T>, page: Page, max: usize) {
    if of.len() >= max && !of.contains_key(&page) {
        of.pop_first();
    }
}

/// One thread's scan: sequential or strided.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Stream {
    last: Page,
    stride: i64,
    /// How many pages beyond the faulting one were wanted last time.
    window: usize,
    used: u64,
}

/// Finds scans by the distances between a thread's faults.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Streams {
    by_thread: BTreeMap<ThreadId, Stream>,
    clock: u64,
}

impl Streams {
    /// Pages of a region of `pages` that the scan of `thread` will want after `page`, in the same way;
    /// none if it is not scanning.
    pub(super) fn ahead(
        &mut self,
        thread: ThreadId,
        page: Page,
        access: Access,
        pages: u64,
    ) -> Vec<Page> {
        self.clock += 1;
        let used = self.clock;
        let Some(stream) = self.by_thread.get_mut(&thread) else {
            if self.by_thread.len() == STREAMS_MAX {
                let oldest = self.by_thread.iter().min_by_key(|(_, stream)| stream.used);
                if let Some(thread) = oldest.map(|(&thread, _)| thread) {
                    self.by_thread.remove(&thread);
                }
            }
            self.by_thread.insert(thread, Stream { last: page, stride: 0, window: 0, used });
            return Vec::new();
        };
        let distance = page.0.wrapping_sub(stream.last.0) as i64;
        if distance == 0 {
            // The same page again: an upgrade, or one that was taken away meanwhile.
            return Vec::new();
        }
        let expected = stream.stride.wrapping_mul(stream.window as i64 + 1);
        if stream.stride != 0 && distance == expected {
            stream.window = (stream.window * 2 + 1).min(COMPANIONS_MAX);
        } else if distance == stream.stride {
            // The last window was refused: the scan goes on page by page.
            stream.window = stream.window.div_ceil(2);
        } else if distance.abs() <= STRIDE_MAX {
            stream.stride = distance;
            // A neighbour makes a scan likely. Another distance must be seen twice, and any by a
            // writer, as what it asks for is taken from others.
            stream.window = usize::from(distance.abs() == 1 && access == Access::Read);
        } else {
            (stream.stride, stream.window) = (0, 0);
        }
        stream.last = page;
        stream.used = used;
        let stride = stream.stride;
        (1..=stream.window as i64)
            .map_while(|step| page.0.checked_add_signed(stride * step))
            .take_while(|&ahead| ahead < pages)
            .map(Page)
            .collect()
    }

    /// Forgets the scan of `thread`.
    pub(super) fn forget(&mut self, thread: ThreadId) {
        self.by_thread.remove(&thread);
    }
}

/// Whom a page follows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Leaders {
    /// The first page of an episode, which tells of all that an instruction needs at once.
    first: Page,
    /// The one before, which tells of what is done often in a long episode. What follows it comes
    /// along another time, so what is missed then follows it too.
    last: Page,
}

/// A page that is taken over after another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Follower {
    page: Page,
    /// How often it was, or came along and was written, lately.
    confidence: u8,
    /// How often it came along for nothing, less how often not.
    failures: u8,
}

impl Follower {
    /// Confidence from which it is asked for with its leader.
    fn wanted(self, odds: Odds) -> u8 {
        let first = if odds.are_poor() { CERTAIN } else { CONFIDENT };
        first << self.failures
    }

    fn is_called(self, odds: Odds) -> bool {
        self.confidence >= self.wanted(odds)
    }

    /// It was missed, or came along and was written. It may be left out once more than it must be.
    fn confirm(&mut self, odds: Odds) {
        self.confidence = (self.confidence + 1).min(self.wanted(odds) + 1);
    }

    /// It came along and was not written.
    fn fail(&mut self, odds: Odds) {
        self.confidence = self.confidence.saturating_sub(1);
        if !self.is_called(odds) {
            self.confidence = 0;
            self.failures = (self.failures + 1).min(FAILURES_MAX);
        }
    }

    /// Whether there is something to remember of it.
    fn is_known(self) -> bool {
        self.confidence > 0 || self.failures > 0
    }
}

/// Learns which pages a thread takes over together.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Convoys {
    followers: BTreeMap<Page, Vec<Follower>>,
    /// What each thread took over in its running episode.
    leaders: BTreeMap<ThreadId, Leaders>,
    /// Pages that are here because of their leader, until they leave.
    came: BTreeMap<Page, Page>,
    odds: Odds,
    requests: u32,
}

impl Convoys {
    /// `thread` takes over `page` from another node. Returns the pages to ask for with it.
    pub(super) fn take(&mut self, thread: ThreadId, page: Page) -> Vec<Page> {
        let leaders = self.leaders.entry(thread).or_insert(Leaders { first: page, last: page });
        let Leaders { first, last } = *leaders;
        leaders.last = page;
        if first != page {
            self.learn(first, page);
        }
        if last != page && last != first {
            self.learn(last, page);
        }
        self.call(page)
    }

    /// The episode of `thread` ended; the next page it takes over leads.
    pub(super) fn end(&mut self, thread: ThreadId) {
        self.leaders.remove(&thread);
    }

    fn learn(&mut self, leader: Page, page: Page) {
        make_room(&mut self.followers, leader, LEADERS_MAX);
        let followers = self.followers.entry(leader).or_default();
        let new = Follower { page, confidence: 1, failures: 0 };
        if let Some(follower) = followers.iter_mut().find(|follower| follower.page == page) {
            follower.confirm(self.odds);
        } else if followers.len() < COMPANIONS_MAX {
            followers.push(new);
        } else if let Some(chance) = followers.iter_mut().find(|follower| follower.confidence <= 1)
        {
            *chance = new;
        }
    }

    /// `page` came along with `leader`, to be written.
    pub(super) fn came(&mut self, page: Page, leader: Page) {
        make_room(&mut self.came, page, CAME_MAX);
        self.came.insert(page, leader);
    }

    /// `page` leaves; it was written, or it was not: then it travelled for nothing.
    pub(super) fn left(&mut self, page: Page, written: bool) {
        let Some(leader) = self.came.remove(&page) else { return };
        let Some(followers) = self.followers.get_mut(&leader) else { return };
        let Some(follower) = followers.iter_mut().find(|follower| follower.page == page) else {
            // It came with a scan.
            return;
        };
        self.odds.note(written);
        if written {
            follower.failures = follower.failures.saturating_sub(1);
            follower.confirm(self.odds);
        } else {
            follower.fail(self.odds);
        }
    }

    fn call(&mut self, leader: Page) -> Vec<Page> {
        let Some(followers) = self.followers.get_mut(&leader) else { return Vec::new() };
        self.requests = self.requests.wrapping_add(1);
        if self.requests.is_multiple_of(PROBE_EVERY) && !followers.is_empty() {
            // Who is left out loses confidence, and wins it back by being missed.
            let at = (self.requests / PROBE_EVERY) as usize % followers.len();
            followers[at].confidence = followers[at].confidence.saturating_sub(1);
            let left_out = followers[at].page;
            followers.retain(|follower| follower.is_known());
            return called(followers, self.odds).filter(|&page| page != left_out).collect();
        }
        called(followers, self.odds).collect()
    }
}

fn called(followers: &[Follower], odds: Odds) -> impl Iterator<Item = Page> {
    followers.iter().filter(move |follower| follower.is_called(odds)).map(|follower| follower.page)
}

/// How often guesses of one kind were for nothing of late.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Odds {
    /// Their share of all, in 1/256, to which each guess brings an eighth.
    wrong: u8,
}

impl Odds {
    fn note(&mut self, right: bool) {
        self.wrong -= self.wrong.div_ceil(8);
        if !right {
            self.wrong += u8::MAX / 8;
        }
    }

    /// Whether it was more than one in six: one alone is not.
    fn are_poor(self) -> bool {
        self.wrong > u8::MAX / 6
    }
}

/// Remembers which pages were given to readers for nothing, as these did not go on to write.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Guesses {
    by_page: BTreeMap<Page, Guess>,
    odds: Odds,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Guess {
    /// The version that went to a reader, and has not been heard of since.
    given: Option<Version>,
    /// How often that was for nothing, less how often not.
    failures: u8,
    /// How many readers get a copy before one gets the page again.
    pause: u8,
}

impl Guesses {
    /// Whether a reader of `page` that is expected to write may have it.
    pub(super) fn may_give(&mut self, page: Page) -> bool {
        let Some(guess) = self.by_page.get_mut(&page).filter(|guess| guess.pause > 0) else {
            return true;
        };
        guess.pause -= 1;
        false
    }

    /// Whether it says much that a reader has gone on to write a page, which it does as the version
    /// after this one. Where guesses are poor, that has to happen twice as often.
    pub(super) fn counts(&self, version: Version) -> bool {
        !self.odds.are_poor() || version.get().is_multiple_of(2)
    }

    /// A reader has got `page`, of this version.
    pub(super) fn given(&mut self, page: Page, version: Version) {
        make_room(&mut self.by_page, page, GUESSES_MAX);
        self.by_page.entry(page).or_default().given = Some(version);
    }

    /// `page` or a copy of it is here again, with bytes that have been the same since a version.
    pub(super) fn came_back(&mut self, page: Page, same_since: Version) {
        let Some(guess) = self.by_page.get_mut(&page) else { return };
        let Some(given) = guess.given.take() else { return };
        let written = same_since > given;
        self.odds.note(written);
        if !written {
            guess.failures = (guess.failures + 1).min(FAILURES_MAX);
            guess.pause = (1 << guess.failures) - 1;
        } else if guess.failures > 1 {
            guess.failures -= 1;
        } else {
            self.by_page.remove(&page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: ThreadId = ThreadId(1);

    fn run(streams: &mut Streams, faults: &[u64]) -> Vec<usize> {
        let ahead = |&page| streams.ahead(T, Page(page), Access::Read, 1 << 20).len();
        faults.iter().map(ahead).collect()
    }

    #[test]
    fn sequential_windows_double_up_to_sixteen_pages() {
        // Each fault comes where the last window ended.
        let windows = run(&mut Streams::default(), &[10, 11, 13, 17, 25, 41, 57]);
        assert_eq!(windows, [0, 1, 3, 7, 15, 15, 15]);
    }

    #[test]
    fn strides_count_from_the_third_fault_on_and_may_go_down() {
        let mut streams = Streams::default();
        assert_eq!(run(&mut streams, &[100, 97, 94, 88]), [0, 0, 1, 3]);
        assert_eq!(streams.ahead(T, Page(76), Access::Read, 1 << 20)[..2], [Page(73), Page(70)]);
    }

    #[test]
    fn random_access_asks_for_nothing() {
        let windows = run(&mut Streams::default(), &[5, 900, 17, 4400, 61, 1000]);
        assert_eq!(windows.iter().sum::<usize>(), 0);
    }

    #[test]
    fn windows_end_with_the_region() {
        let mut streams = Streams::default();
        for page in [0, 1, 3] {
            streams.ahead(T, Page(page), Access::Read, 8);
        }
        assert_eq!(streams.ahead(T, Page(7), Access::Read, 8), []);
    }

    #[test]
    fn a_writer_scans_from_its_third_page_on() {
        let mut streams = Streams::default();
        let mut ahead = |page| streams.ahead(T, Page(page), Access::Write, 1 << 20);
        assert_eq!([10, 11].map(&mut ahead), [vec![], vec![]]);
        assert_eq!(ahead(12), [Page(13)]);
    }

    #[test]
    fn a_convoy_is_learned_and_unlearned() {
        let mut convoys = Convoys::default();
        for _ in 0..2 {
            convoys.take(T, Page(1));
            convoys.take(T, Page(2));
            convoys.end(T);
        }
        assert_eq!(convoys.take(T, Page(1)), [Page(2)]);
        convoys.end(T);
        // Never missed when left out: forgotten after a few probes.
        for _ in 0..4 * PROBE_EVERY {
            convoys.take(T, Page(1));
            convoys.end(T);
        }
        assert_eq!(convoys.take(T, Page(1)), []);
    }

    #[test]
    fn odds_are_poor_where_more_than_one_in_six_is_for_nothing() {
        let mut odds = Odds::default();
        let mut after = |every: u32| {
            (0..100).for_each(|guess: u32| odds.note(!guess.is_multiple_of(every)));
            odds.are_poor()
        };
        assert_eq!([20, 3, 20, 1].map(&mut after), [false, true, false, true]);
    }

    #[test]
    fn what_leaves_unwritten_is_called_no_more_until_it_is_missed() {
        let mut convoys = Convoys::default();
        let miss = |convoys: &mut Convoys| {
            convoys.take(T, Page(1));
            convoys.take(T, Page(2));
            convoys.end(T);
        };
        (0..2).for_each(|_| miss(&mut convoys));
        let left = |convoys: &mut Convoys, written| {
            convoys.came(Page(2), Page(1));
            convoys.left(Page(2), written);
        };
        left(&mut convoys, true);
        left(&mut convoys, false);
        assert_eq!(convoys.take(T, Page(1)), [Page(2)]);
        left(&mut convoys, false);
        convoys.end(T);
        // Twice as often, as most guesses are for nothing, and twice that each time; or some more if a
        // probe came in between.
        let mut misses = || {
            let missed = (0..100).take_while(|_| {
                let with = convoys.take(T, Page(1));
                if with.is_empty() {
                    convoys.take(T, Page(2));
                }
                convoys.end(T);
                with.is_empty()
            });
            let missed = missed.count();
            left(&mut convoys, false);
            missed
        };
        assert!((8..=10).contains(&misses()));
        assert!((16..=19).contains(&misses()));
    }

    #[test]
    fn readers_that_do_not_write_get_a_page_less_and_less_often() {
        let mut guesses = Guesses::default();
        let version = |number| Version::new(number).unwrap();
        let mut copies = |same_since| {
            guesses.given(Page(1), version(5));
            guesses.came_back(Page(1), version(same_since));
            // That it comes again says nothing new.
            guesses.came_back(Page(1), version(5));
            (0..).take_while(|_| !guesses.may_give(Page(1))).count()
        };
        assert_eq!([5, 4, 5].map(&mut copies), [1, 3, 7]);
        assert_eq!([6, 6, 6, 5].map(&mut copies), [0, 0, 0, 1]);
        assert!(guesses.may_give(Page(2)));
    }

    #[test]
    fn where_guesses_fail_every_second_writer_counts() {
        let mut guesses = Guesses::default();
        let version = |number| Version::new(number).unwrap();
        let counting =
            |guesses: &Guesses| (1..=4).filter(|&it| guesses.counts(version(it))).count();
        assert_eq!(counting(&guesses), 4);
        for page in 0..2 {
            guesses.given(Page(page), version(5));
            guesses.came_back(Page(page), version(5));
        }
        assert_eq!(counting(&guesses), 2);
    }

    #[test]
    fn only_so_many_guesses_are_remembered() {
        let mut guesses = Guesses::default();
        for page in 0..GUESSES_MAX as u64 + 5 {
            guesses.given(Page(page), Version::ZERO);
        }
        assert_eq!(guesses.by_page.len(), GUESSES_MAX);
    }

    #[test]
    fn a_full_convoy_has_room_for_what_is_missed_now() {
        let mut convoys = Convoys::default();
        for page in (2..COMPANIONS_MAX as u64 + 2).chain([99, 99]) {
            convoys.take(T, Page(1));
            convoys.take(T, Page(page));
            convoys.end(T);
        }
        assert_eq!(convoys.take(T, Page(1)), [Page(99)]);
    }

    #[test]
    fn what_is_missed_stays_in_the_convoy() {
        let mut convoys = Convoys::default();
        for _ in 0..10 * PROBE_EVERY {
            let with = convoys.take(T, Page(1));
            if with.is_empty() {
                convoys.take(T, Page(2));
            }
            convoys.end(T);
        }
        convoys.take(T, Page(1));
        assert_eq!(convoys.followers[&Page(1)].len(), 1);
    }
}
