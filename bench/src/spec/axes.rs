//! From lists of options to rows.

use super::{CacheState, Engine, LoadMode, Mode, Reference, Row};

/// The options that multiply into rows.
#[derive(Clone, Debug)]
pub(crate) struct Axes {
    /// Rows without a limit, whatever the others' conditions are. The very first.
    pub(crate) references: Vec<Reference>,
    /// Baselines come before rows of the same conditions: ratios are taken against the first row.
    pub(crate) stock: Vec<LoadMode>,
    /// Names of other programs.
    pub(crate) commands: Vec<String>,
    pub(crate) modes: Vec<Mode>,
    /// Of the pager; none: its default.
    pub(crate) policies: Vec<String>,
    /// Of the pager: what it reads ahead; none: its default.
    pub(crate) lookaheads: Vec<String>,
    /// Of the pager: whether it replays.
    pub(crate) replays: Vec<bool>,
    pub(crate) caches: Vec<CacheState>,
    pub(crate) repack: Repack,
    /// `None`: on for selective, off for the others.
    pub(crate) advise: Option<bool>,
    pub(crate) budgets: Vec<Option<u64>>,
    pub(crate) readaheads: Vec<Option<u64>>,
    /// The same of baselines; `None`: as the other rows.
    pub(crate) baseline_budgets: Option<Vec<Option<u64>>>,
    pub(crate) baseline_readaheads: Option<Vec<Option<u64>>>,
}

/// What is measured, whatever the conditions.
struct Kind {
    engine: Engine,
    mode: Mode,
    repack: bool,
    policy: Option<String>,
    lookahead: Option<String>,
    replay: bool,
}

/// Which repacking rows there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Repack {
    /// Every row with repacking on.
    On,
    /// Every row with repacking off.
    Off,
    /// Every row with repacking off, and eager, pager and stock with repacking on.
    Both,
    /// Pager rows with repacking on, every other row with repacking off.
    Pager,
}

impl Axes {
    /// The rows, those of equal conditions beside each other, the reference of each group first.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let baseline_budgets = self.baseline_budgets.as_ref().unwrap_or(&self.budgets);
        let baseline_readaheads = self.baseline_readaheads.as_ref();
        let baseline_readaheads = baseline_readaheads.unwrap_or(&self.readaheads);
        let (baselines, own) = (self.baselines(), self.own());
        let mut rows = Vec::new();
        for budget_bytes in distinct(self.budgets.iter().chain(baseline_budgets)) {
            for readahead_bytes in distinct(baseline_readaheads.iter().chain(&self.readaheads)) {
                for cache in &self.caches {
                    let mut add = |kinds: &[Kind]| {
                        let row = |kind| self.row(kind, *cache, budget_bytes, readahead_bytes);
                        rows.extend(kinds.iter().map(row));
                    };
                    if baseline_budgets.contains(&budget_bytes)
                        && baseline_readaheads.contains(&readahead_bytes)
                    {
                        add(&baselines);
                    }
                    if self.budgets.contains(&budget_bytes)
                        && self.readaheads.contains(&readahead_bytes)
                    {
                        add(&own);
                    }
                }
            }
        }
        self.with_references(rows)
    }

    /// Puts the references before the rows, unless they are among them.
    fn with_references(&self, mut rows: Vec<Row>) -> Vec<Row> {
        let mut references = Vec::new();
        for reference in &self.references {
            let kind = Kind {
                engine: Engine::Stock(reference.load_mode),
                mode: Mode::Eager,
                repack: reference.repack,
                policy: None,
                lookahead: None,
                replay: false,
            };
            let mut row = self.row(&kind, self.caches[0], None, None);
            match rows.iter_mut().find(|other| **other == row) {
                Some(same) => same.is_reference = true,
                None => {
                    row.is_reference = true;
                    references.push(row);
                }
            }
        }
        references.append(&mut rows);
        references
    }

    fn row(
        &self,
        kind: &Kind,
        cache: CacheState,
        budget_bytes: Option<u64>,
        readahead_bytes: Option<u64>,
    ) -> Row {
        let advise = self.advise.unwrap_or(kind.mode == Mode::Selective);
        Row {
            engine: kind.engine.clone(),
            mode: kind.mode,
            cache,
            repack: kind.repack,
            advise: kind.engine == Engine::Faultline && advise,
            budget_bytes,
            readahead_bytes,
            policy: kind.policy.clone(),
            lookahead: kind.lookahead.clone(),
            replay: kind.replay,
            is_reference: false,
        }
    }

    /// Other programs.
    fn baselines(&self) -> Vec<Kind> {
        let repacks: &[bool] = match self.repack {
            Repack::On => &[true],
            Repack::Off | Repack::Pager => &[false],
            Repack::Both => &[false, true],
        };
        let kind = |engine, repack| Kind {
            engine,
            mode: Mode::Eager,
            repack,
            policy: None,
            lookahead: None,
            replay: false,
        };
        let stock = self.stock.iter().flat_map(|load_mode| {
            let of = move |repack: &bool| kind(Engine::Stock(*load_mode), *repack);
            repacks.iter().map(of)
        });
        let commands = self.commands.iter();
        let commands = commands.map(|name| kind(Engine::Command(name.clone()), false));
        stock.chain(commands).collect()
    }

    /// Our own modes.
    fn own(&self) -> Vec<Kind> {
        let paged = |mode, repack, policy, lookahead, replay| Kind {
            engine: Engine::Faultline,
            mode,
            repack,
            policy,
            lookahead,
            replay,
        };
        let mut kinds = Vec::new();
        let mut add = |mode, repack| match mode {
            Mode::Pager => {
                for policy in or_default(&self.policies) {
                    for lookahead in or_default(&self.lookaheads) {
                        let of = |&replay| {
                            paged(mode, repack, policy.clone(), lookahead.clone(), replay)
                        };
                        kinds.extend(self.replays.iter().map(of));
                    }
                }
            }
            _ => kinds.push(paged(mode, repack, None, None, false)),
        };
        for mode in &self.modes {
            let is_on =
                self.repack == Repack::On || self.repack == Repack::Pager && *mode == Mode::Pager;
            add(*mode, is_on);
        }
        if self.repack == Repack::Both {
            for mode in [Mode::Eager, Mode::Pager] {
                if self.modes.contains(&mode) {
                    add(mode, true);
                }
            }
        }
        kinds
    }
}

/// What was given, or the pager's default.
fn or_default(names: &[String]) -> Vec<Option<String>> {
    match names.is_empty() {
        true => vec![None],
        false => names.iter().cloned().map(Some).collect(),
    }
}

/// The values in their order, without repetitions.
fn distinct<'a>(values: impl Iterator<Item = &'a Option<u64>>) -> Vec<Option<u64>> {
    let mut found = Vec::new();
    for value in values {
        if !found.contains(value) {
            found.push(*value);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::Baseline;
    use super::*;

    fn axes() -> Axes {
        Axes {
            references: Vec::new(),
            policies: Vec::new(),
            lookaheads: Vec::new(),
            replays: vec![false],
            baseline_budgets: None,
            baseline_readaheads: None,
            stock: Vec::new(),
            commands: Vec::new(),
            modes: Mode::ALL.to_vec(),
            caches: vec![CacheState::Cold],
            repack: Repack::Both,
            advise: None,
            budgets: vec![None],
            readaheads: vec![None],
        }
    }

    #[test]
    fn repacking_is_added_for_eager_only() {
        let rows = axes().rows();
        let names: Vec<_> = rows.iter().map(Row::label).collect();
        assert_eq!(
            names,
            [
                "eager cold",
                "none cold",
                "selective cold",
                "eager cold repack"
            ]
        );
        assert_eq!(
            rows.iter().map(|r| r.advise).collect::<Vec<_>>(),
            [false, false, true, false]
        );
        let off = Axes {
            repack: Repack::Off,
            ..axes()
        };
        assert!(off.rows().iter().all(|row| !row.repack));
        let on = Axes {
            repack: Repack::On,
            ..axes()
        };
        assert!(on.rows().iter().all(|row| row.repack) && on.rows().len() == 3);
    }

    #[test]
    fn baselines_come_first_and_repack_alone() {
        let rows = Axes {
            stock: "stock:all".parse::<Baseline>().unwrap().0,
            commands: vec!["peer".into()],
            modes: vec![Mode::Selective],
            advise: Some(true),
            ..axes()
        }
        .rows();
        let names: Vec<_> = rows.iter().map(Row::label).collect();
        assert_eq!(
            names,
            [
                "stock mmap cold",
                "stock mmap cold repack",
                "stock none cold",
                "stock none cold repack",
                "stock dio cold",
                "stock dio cold repack",
                "peer cold",
                "selective cold",
            ]
        );
        assert!(rows[0].same_arithmetic(&rows[7]) && !rows[1].same_arithmetic(&rows[7]));
        assert!(rows[..7].iter().all(|row| !row.advise) && rows[7].advise);
        assert_eq!("stock".parse::<Baseline>().unwrap().0, [LoadMode::Mmap]);
        for bad in ["", "stack", "stock:", "stock:lazy", "stock:mmap:x"] {
            let message = bad.parse::<Baseline>().unwrap_err().to_string();
            assert!(message.contains("stock:dio"), "{message}");
        }
    }

    #[test]
    fn lists_multiply() {
        let rows = Axes {
            repack: Repack::Off,
            caches: vec![CacheState::Cold, CacheState::Warm],
            readaheads: vec![Some(128 * 1024), Some(8 << 20)],
            advise: Some(false),
            ..axes()
        }
        .rows();
        assert_eq!(rows.len(), 12);
        assert!(rows[0].same_conditions(&rows[2]));
        assert!(!rows[0].same_conditions(&rows[3]));
        assert_eq!(rows[2].label(), "selective cold no-advise ra 128 KiB");
    }

    #[test]
    fn references_have_no_limit_and_baselines_conditions_of_their_own() {
        let axes = Axes {
            references: ["stock:none", "stock:none+repack"]
                .map(|name| name.parse().unwrap())
                .to_vec(),
            stock: vec![LoadMode::Mmap],
            modes: vec![Mode::Pager],
            policies: vec!["lru".into(), "lfu".into()],
            repack: Repack::Off,
            budgets: vec![Some(2 << 30), Some(1 << 30)],
            baseline_budgets: Some(vec![Some(1 << 30)]),
            baseline_readaheads: Some(vec![Some(128 << 10), Some(8 << 20)]),
            ..axes()
        };
        let rows = axes.rows();
        let labels: Vec<_> = rows.iter().map(Row::label).collect();
        let expected = [
            "stock none cold",
            "stock none cold repack",
            "pager cold lru in 2 GiB",
            "pager cold lfu in 2 GiB",
            "stock mmap cold in 1 GiB ra 128 KiB",
            "stock mmap cold in 1 GiB ra 8 MiB",
            "pager cold lru in 1 GiB",
            "pager cold lfu in 1 GiB",
        ];
        assert_eq!(labels, expected);
        let set_against = |index: usize| -> Vec<usize> {
            let others = 0..rows.len();
            others
                .filter(|&other| rows[index].is_set_against(&rows[other]))
                .collect()
        };
        assert_eq!(set_against(0), [0; 0]);
        assert_eq!((set_against(2), set_against(4)), (vec![0, 1], vec![0, 1]));
        assert_eq!(set_against(6), [0, 1, 4, 5]);

        let among_the_rows = Axes {
            stock: vec![LoadMode::None],
            budgets: vec![None],
            baseline_budgets: None,
            baseline_readaheads: None,
            ..axes
        };
        let rows = among_the_rows.rows();
        let references: Vec<_> = rows.iter().map(|row| row.is_reference).collect();
        assert_eq!(references, [true, true, false, false]);
        for bad in ["stock:all", "eager", "stock:none+", ""] {
            let message = bad.parse::<Reference>().unwrap_err().to_string();
            assert!(message.contains("stock:none+repack"), "{message}");
        }
    }

    #[test]
    fn repacked_rows_are_compared_within_a_mode() {
        let rows = axes().rows();
        assert!(rows[0].same_arithmetic(&rows[2]));
        assert!(!rows[0].same_arithmetic(&rows[3]));
        assert!(rows[3].same_arithmetic(&rows[3]));
    }
}
