//! The litmus tests: small programs whose outcomes tell memory models apart.
//!
//! Names after J. Alglave et al., "Fences in Weak Memory Models", CAV 2010, and P. Sewell et al.,
//! "x86-TSO: A Rigorous and Usable Programmer's Model for x86 Multiprocessors", CACM 53(7), 2010.

/// Most threads of a program.
pub(crate) const THREADS_MAX: usize = 4;
/// Most variables of a program, each on a page of its own.
pub(crate) const VARIABLES_MAX: usize = 4;
/// Most values that one thread reads.
pub(crate) const VALUES_MAX: usize = 8;

/// A word of a variable's page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Place {
    pub(crate) variable: usize,
    pub(crate) word: usize,
}

const fn place(variable: usize, word: usize) -> Place {
    Place { variable, word }
}

const X: Place = place(0, 0);
const Y: Place = place(1, 0);

/// One instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    Load(Place),
    Store(Place, u64),
    /// `xchg`: stores, and reads what was there.
    Exchange(Place, u64),
    /// `lock xadd`: adds, and reads what was there.
    Add(Place, u64),
    /// `mfence`.
    Fence,
}

impl Op {
    pub(crate) fn place(self) -> Option<Place> {
        match self {
            Self::Load(place)
            | Self::Store(place, _)
            | Self::Exchange(place, _)
            | Self::Add(place, _) => Some(place),
            Self::Fence => None,
        }
    }

    pub(crate) fn reads(self) -> bool {
        !matches!(self, Self::Store(..) | Self::Fence)
    }
}

/// What each thread read, in its order, and what each place holds in the end, in theirs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Outcome {
    pub(crate) read: Vec<Vec<u64>>,
    pub(crate) last: Vec<u64>,
}

/// How the literature judges the outcome that a test is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Judgement {
    /// x86-TSO allows it, sequential consistency does not.
    Relaxed,
    /// x86-TSO forbids it.
    Forbidden,
}

/// A litmus test. All places hold 0 at first.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) threads: &'static [&'static [Op]],
    /// The outcome that the test is about.
    pub(crate) suspect: fn(&Outcome) -> bool,
    pub(crate) judgement: Judgement,
}

impl Program {
    /// The places it uses, in order.
    pub(crate) fn places(&self) -> Vec<Place> {
        let mut places: Vec<Place> =
            self.threads.iter().flat_map(|ops| ops.iter().filter_map(|op| op.place())).collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    pub(crate) fn variables(&self) -> usize {
        self.places().last().map_or(0, |place| place.variable + 1)
    }
}

/// The programs with as many threads as in `threads`.
pub(crate) fn with_threads(threads: std::ops::RangeInclusive<usize>) -> Vec<&'static Program> {
    PROGRAMS.iter().filter(|program| threads.contains(&program.threads.len())).collect()
}

/// The payload of the seqlock lies on three pages, two words on each; `Y` is its counter.
const PAYLOAD: [Place; 6] =
    [place(0, 0), place(0, 511), place(2, 0), place(2, 511), place(3, 0), place(3, 511)];

use Judgement::{Forbidden, Relaxed};
use Op::{Add, Exchange, Fence, Load, Store};

pub(crate) const PROGRAMS: &[Program] = &[
    Program {
        name: "SB",
        threads: &[&[Store(X, 1), Load(Y)], &[Store(Y, 1), Load(X)]],
        suspect: |seen| seen.read == [[0], [0]],
        judgement: Relaxed,
    },
    Program {
        name: "SB+mfences",
        threads: &[&[Store(X, 1), Fence, Load(Y)], &[Store(Y, 1), Fence, Load(X)]],
        suspect: |seen| seen.read == [[0], [0]],
        judgement: Forbidden,
    },
    Program {
        name: "SB+xchgs",
        threads: &[&[Exchange(X, 1), Load(Y)], &[Exchange(Y, 1), Load(X)]],
        suspect: |seen| seen.read == [[0, 0], [0, 0]],
        judgement: Forbidden,
    },
    Program {
        name: "SB+xadds",
        threads: &[&[Add(X, 1), Load(Y)], &[Add(Y, 1), Load(X)]],
        suspect: |seen| seen.read == [[0, 0], [0, 0]],
        judgement: Forbidden,
    },
    Program {
        name: "MP",
        threads: &[&[Store(X, 1), Store(Y, 1)], &[Load(Y), Load(X)]],
        suspect: |seen| seen.read[1] == [1, 0],
        judgement: Forbidden,
    },
    Program {
        name: "LB",
        threads: &[&[Load(X), Store(Y, 1)], &[Load(Y), Store(X, 1)]],
        suspect: |seen| seen.read == [[1], [1]],
        judgement: Forbidden,
    },
    Program {
        name: "IRIW",
        threads: &[&[Store(X, 1)], &[Store(Y, 1)], &[Load(X), Load(Y)], &[Load(Y), Load(X)]],
        suspect: |seen| seen.read[2..] == [[1, 0], [1, 0]],
        judgement: Forbidden,
    },
    Program {
        name: "WRC",
        threads: &[&[Store(X, 1)], &[Load(X), Store(Y, 1)], &[Load(Y), Load(X)]],
        suspect: |seen| seen.read[1] == [1] && seen.read[2] == [1, 0],
        judgement: Forbidden,
    },
    Program {
        name: "CoRR",
        threads: &[&[Store(X, 1), Store(X, 2)], &[Load(X), Load(X)]],
        suspect: |seen| seen.read[1][0] > seen.read[1][1],
        judgement: Forbidden,
    },
    Program {
        name: "CoRR2",
        threads: &[&[Store(X, 1)], &[Store(X, 2)], &[Load(X), Load(X)], &[Load(X), Load(X)]],
        suspect: |seen| seen.read[2..] == [[1, 2], [2, 1]],
        judgement: Forbidden,
    },
    Program {
        name: "2+2W",
        threads: &[&[Store(X, 1), Store(Y, 2)], &[Store(Y, 1), Store(X, 2)]],
        suspect: |seen| seen.last == [1, 1],
        judgement: Forbidden,
    },
    Program {
        name: "R",
        threads: &[&[Store(X, 1), Store(Y, 1)], &[Store(Y, 2), Load(X)]],
        suspect: |seen| seen.read[1] == [0] && seen.last[1] == 2,
        judgement: Relaxed,
    },
    Program {
        name: "R+mfence",
        threads: &[&[Store(X, 1), Store(Y, 1)], &[Store(Y, 2), Fence, Load(X)]],
        suspect: |seen| seen.read[1] == [0] && seen.last[1] == 2,
        judgement: Forbidden,
    },
    Program {
        name: "S",
        threads: &[&[Store(X, 2), Store(Y, 1)], &[Load(Y), Store(X, 1)]],
        suspect: |seen| seen.read[1] == [1] && seen.last[0] == 2,
        judgement: Forbidden,
    },
    Program {
        name: "increments",
        threads: &[&[Add(X, 1), Add(X, 1)], &[Add(X, 1), Add(X, 1)], &[Add(X, 1), Add(X, 1)]],
        suspect: |seen| seen.last != [6],
        judgement: Forbidden,
    },
    Program {
        name: "seqlock",
        threads: &[
            &[
                Store(Y, 1),
                Store(PAYLOAD[0], 1),
                Store(PAYLOAD[1], 1),
                Store(PAYLOAD[2], 1),
                Store(PAYLOAD[3], 1),
                Store(PAYLOAD[4], 1),
                Store(PAYLOAD[5], 1),
                Store(Y, 2),
            ],
            &[
                Load(Y),
                Load(PAYLOAD[0]),
                Load(PAYLOAD[1]),
                Load(PAYLOAD[2]),
                Load(PAYLOAD[3]),
                Load(PAYLOAD[4]),
                Load(PAYLOAD[5]),
                Load(Y),
            ],
        ],
        suspect: |seen| {
            let (before, after) = (seen.read[1][0], seen.read[1][7]);
            let payload = &seen.read[1][1..7];
            before == after && before % 2 == 0 && payload.iter().any(|&word| word != before / 2)
        },
        judgement: Forbidden,
    },
];
