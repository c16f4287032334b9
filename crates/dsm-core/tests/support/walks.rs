//! Worlds with page tables that may be walk-shared.

use super::script::{Config, on, read, spoil, store, walk, write};

/// The worlds, each with the events that it is there for (rows of [`super::coverage::Coverage`]).
pub fn configs() -> Vec<(Config, &'static str)> {
    let mut configs = two_nodes();
    configs.extend(three_nodes());
    configs
}

fn two_nodes() -> Vec<(Config, &'static str)> {
    vec![
        (
            Config::new(
                "a table, then a flag",
                &[1, 0],
                2,
                vec![on(0, &[walk(0), store(0, 0), write(1)]), on(1, &[walk(0), read(1), walk(0)])],
            )
            .walk_sharing(&[0]),
            "walk-entered walk-joined walk-reports walk-waited",
        ),
        (
            Config::new(
                "a flag, then a table",
                &[1, 0],
                2,
                vec![on(0, &[walk(0), read(1), walk(0)]), on(1, &[walk(0), store(0, 1), write(1)])],
            )
            .walk_sharing(&[0]),
            "walk-entered walk-joined walk-reports walk-waited",
        ),
        (
            Config::new(
                "store buffering with a table",
                &[1, 0],
                2,
                vec![
                    on(0, &[walk(0), store(0, 0), read(1), walk(0)]),
                    on(1, &[write(1), walk(0), write(1)]),
                ],
            )
            .walk_sharing(&[0]),
            "walk-joined walk-reports walk-waited",
        ),
        (
            Config::new(
                "two tables, one after the other",
                &[1, 0],
                2,
                vec![
                    on(0, &[walk(0), store(0, 0), store(1, 0)]),
                    on(1, &[walk(0), walk(1), walk(0)]),
                ],
            )
            .walk_sharing(&[0, 1]),
            "walk-joined walk-reports",
        ),
        (
            Config::new(
                "two words of a table",
                &[0, 1],
                2,
                vec![
                    on(0, &[walk(0), store(0, 0), store(0, 0), read(1)]),
                    on(1, &[walk(0), store(0, 1), write(1)]),
                ],
            )
            .walk_sharing(&[0]),
            "walk-joined walk-reports walk-waited",
        ),
        (
            Config::new(
                "a table is none any more",
                &[1, 0],
                2,
                vec![
                    on(0, &[walk(0), store(0, 1), read(1), walk(0)]),
                    on(1, &[walk(0), spoil(0), write(1)]),
                ],
            )
            .walk_sharing(&[0]),
            "walk-joined walk-left walk-waited",
        ),
        (
            Config::new(
                "of two tables one leaves",
                &[1, 0],
                2,
                vec![
                    on(0, &[walk(0), walk(1), store(1, 1), store(0, 1)]),
                    on(1, &[walk(0), walk(1), spoil(0), walk(1)]),
                ],
            )
            .walk_sharing(&[0, 1]),
            "walk-joined walk-left walk-reports",
        ),
        (
            Config::new(
                "pages that are no tables",
                &[1, 0],
                1,
                vec![on(0, &[write(0), write(0)]), on(1, &[write(0), write(0)])],
            )
            .walk_sharing(&[]),
            "",
        ),
    ]
}

fn three_nodes() -> Vec<(Config, &'static str)> {
    vec![
        (
            Config::new(
                "3 nodes, a table, then a flag",
                &[1, 0, 0],
                2,
                vec![
                    on(0, &[walk(0)]),
                    on(1, &[walk(0), store(0, 0), write(1)]),
                    on(2, &[walk(0), read(1), walk(0)]),
                ],
            )
            .walk_sharing(&[0]),
            "walk-joined walk-reports walk-waited",
        ),
        (
            Config::new(
                "3 nodes, two tables",
                &[1, 0, 0],
                2,
                vec![
                    on(0, &[walk(0), store(0, 0), store(1, 0)]),
                    on(1, &[walk(1)]),
                    on(2, &[walk(1), walk(0)]),
                ],
            )
            .walk_sharing(&[0, 1]),
            "walk-joined walk-reports",
        ),
        (
            Config::new(
                "3 nodes, what one tells another",
                &[0, 1, 0],
                2,
                vec![
                    on(0, &[walk(0), store(0, 0)]),
                    on(1, &[walk(0), walk(0), write(1)]),
                    on(2, &[walk(0), read(1), walk(0)]),
                ],
            )
            .walk_sharing(&[0]),
            "walk-joined walk-reports",
        ),
        (
            Config::new(
                "3 nodes, a table comes while another changes",
                &[1, 0, 0],
                2,
                vec![
                    on(0, &[walk(0), store(0, 0), store(1, 0)]),
                    on(1, &[store(0, 1)]),
                    on(2, &[walk(0), walk(1), walk(0)]),
                ],
            )
            .walk_sharing(&[0, 1])
            .calm(),
            "walk-joined walk-reports",
        ),
        (
            Config::new(
                "3 nodes, a table is none any more",
                &[1, 0, 0],
                1,
                vec![
                    on(0, &[walk(0)]),
                    on(1, &[walk(0), store(0, 1)]),
                    on(2, &[walk(0), spoil(0), walk(0)]),
                ],
            )
            .walk_sharing(&[0]),
            "walk-joined walk-left walk-reports",
        ),
    ]
}
