use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::config::Ttl;

const A: ModelId = ModelId(0);
const B: ModelId = ModelId(1);
const C: ModelId = ModelId(2);
const MINUTE: Duration = Duration::from_secs(60);

fn spec(name: &str, need_bytes: u64) -> MemberSpec {
    MemberSpec {
        name: name.to_owned(),
        ttl: Ttl::After(5 * MINUTE),
        group: None,
        concurrency_limit: 2,
        queue_limit: 8,
        need_bytes,
    }
}

/// A fleet, what it asked for, and a clock that moves when told.
struct Bench {
    fleet: Fleet,
    now: Instant,
}

impl Bench {
    fn new(budget_bytes: u64, max_loaded: usize, specs: Vec<MemberSpec>) -> Bench {
        let limits = FleetLimits {
            budget_bytes,
            max_loaded,
            queue_limit: 12,
        };
        Bench {
            fleet: Fleet::new(limits, specs),
            now: Instant::now(),
        }
    }

    /// Models of 10 bytes in a budget of 20.
    fn three() -> Bench {
        Bench::new(20, 9, vec![spec("a", 10), spec("b", 10), spec("c", 10)])
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.fleet.next_action()).collect()
    }

    fn ask(&mut self, model: ModelId) -> Ticket {
        self.fleet.request(model, self.now).unwrap()
    }

    fn ready(&mut self, model: ModelId) {
        self.fleet.ready(model, 10, self.now);
    }

    fn release(&mut self, model: ModelId) {
        self.fleet.release(model, None, self.now);
    }

    fn ended(&mut self, model: ModelId) {
        self.fleet.ended(model, None, self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.fleet.tick(self.now);
    }

    /// Loads a model, lets one request run, and ends it.
    fn use_once(&mut self, model: ModelId) {
        let ticket = self.ask(model);
        if self.fleet.status(model, self.now).status == Status::Loading {
            self.ready(model);
        }
        assert!(self.actions().contains(&Action::Grant(ticket, model)));
        self.release(model);
        self.pass(Duration::from_secs(1));
    }

    fn status(&self, model: ModelId) -> Status {
        self.fleet.status(model, self.now).status
    }
}

#[test]
fn many_waiters_load_a_model_once() {
    let mut bench = Bench::three();
    let tickets: Vec<Ticket> = (0..3).map(|_| bench.ask(A)).collect();
    assert_eq!(bench.actions(), [Action::Load(A)]);
    bench.fleet.progress(A, 0.25);
    let status = bench.fleet.status(A, bench.now);
    assert_eq!(
        (status.status, status.progress),
        (Status::Loading, Some(0.25))
    );
    assert_eq!(status.waiting, 3);
    bench.ready(A);
    // Two at a time.
    let granted = [Action::Grant(tickets[0], A), Action::Grant(tickets[1], A)];
    assert_eq!(bench.actions(), granted);
    bench.release(A);
    assert_eq!(bench.actions(), [Action::Grant(tickets[2], A)]);
    assert_eq!(bench.status(A), Status::Running);
}

#[test]
fn a_model_leaves_when_it_was_idle_for_its_time() {
    let mut bench = Bench::three();
    bench.use_once(A);
    assert_eq!(bench.status(A), Status::Idle);
    let deadline = bench.fleet.next_deadline().unwrap();
    assert_eq!(deadline - bench.now, 5 * MINUTE - Duration::from_secs(1));
    bench.pass(4 * MINUTE);
    assert_eq!(bench.actions(), []);
    // A request begins the time anew.
    bench.use_once(A);
    bench.pass(4 * MINUTE);
    assert_eq!(bench.actions(), []);
    bench.pass(MINUTE);
    assert_eq!(bench.actions(), [Action::Unload(A)]);
    assert_eq!(
        bench.fleet.counted_bytes(),
        10,
        "it holds memory until it is gone"
    );
    bench.ended(A);
    assert_eq!(
        (bench.fleet.counted_bytes(), bench.status(A)),
        (0, Status::Unloaded)
    );
    assert_eq!(bench.fleet.next_deadline(), None);
}

#[test]
fn a_running_request_keeps_its_model_however_long_it_takes() {
    let mut bench = Bench::three();
    bench.ask(A);
    bench.ready(A);
    bench.actions();
    assert_eq!(bench.fleet.next_deadline(), None);
    bench.pass(600 * MINUTE);
    bench.fleet.unload(A, bench.now);
    assert_eq!(bench.actions(), []);
    bench.release(A);
    assert_eq!(bench.actions(), [Action::Unload(A)]);
}

#[test]
fn keep_alive_of_a_request_counts_until_the_next_one() {
    let mut bench = Bench::three();
    bench.use_once(A);
    for (keep_alive, expected) in [
        (Some(Ttl::Never), None),
        (Some(Ttl::After(MINUTE)), Some(MINUTE)),
        (None, Some(5 * MINUTE)),
    ] {
        bench.ask(A);
        bench.actions();
        bench.fleet.release(A, keep_alive, bench.now);
        let status = bench.fleet.status(A, bench.now);
        assert_eq!(status.expires_in, expected);
        assert_eq!(status.stays, keep_alive == Some(Ttl::Never));
    }
    bench.ask(A);
    bench.actions();
    bench
        .fleet
        .release(A, Some(Ttl::After(Duration::ZERO)), bench.now);
    assert_eq!(bench.actions(), [Action::Unload(A)]);
}

#[test]
fn a_model_loaded_ahead_waits_for_its_first_request() {
    let mut specs = vec![spec("a", 10)];
    specs[0].ttl = Ttl::After(Duration::ZERO);
    let mut bench = Bench::new(20, 9, specs);
    bench.fleet.load(A, bench.now);
    bench.ready(A);
    bench.pass(60 * MINUTE);
    assert_eq!(bench.actions(), [Action::Load(A)]);
    bench.ask(A);
    bench.actions();
    bench.release(A);
    assert_eq!(bench.actions(), [Action::Unload(A)]);
}

#[test]
fn the_least_recently_used_gives_way() {
    let mut bench = Bench::three();
    bench.use_once(A);
    bench.use_once(B);
    bench.use_once(A);
    let ticket = bench.ask(C);
    assert_eq!(bench.actions(), [Action::Unload(B)]);
    bench.ended(B);
    assert_eq!(bench.actions(), [Action::Load(C)]);
    bench.ready(C);
    assert_eq!(bench.actions(), [Action::Grant(ticket, C)]);
    assert_eq!(bench.status(A), Status::Idle);
}

#[test]
fn an_idle_model_gives_way_before_a_busy_one() {
    let mut bench = Bench::three();
    bench.ask(A);
    bench.ready(A);
    bench.actions();
    bench.pass(MINUTE);
    bench.use_once(B);
    bench.ask(C);
    assert_eq!(bench.actions(), [Action::Unload(B)]);
}

#[test]
fn a_leaving_model_is_not_replaced_by_another_victim() {
    let mut bench = Bench::three();
    bench.use_once(A);
    bench.use_once(B);
    bench.ask(C);
    assert_eq!(bench.actions(), [Action::Unload(A)]);
    // While it goes, nobody else has to.
    bench.pass(Duration::from_secs(1));
    bench.ask(C);
    assert_eq!(bench.actions(), []);
}

#[test]
fn max_loaded_counts_models() {
    let mut bench = Bench::new(1000, 1, vec![spec("a", 1), spec("b", 1)]);
    bench.use_once(A);
    bench.ask(B);
    assert_eq!(bench.actions(), [Action::Unload(A)]);
}

#[test]
fn of_a_group_one_model_is_loaded() {
    let mut specs = vec![spec("a", 1), spec("b", 1), spec("c", 1)];
    specs[0].group = Some("g".to_owned());
    specs[1].group = Some("g".to_owned());
    let mut bench = Bench::new(1000, 9, specs);
    bench.use_once(A);
    bench.use_once(C);
    bench.ask(B);
    assert_eq!(bench.actions(), [Action::Unload(A)]);
    assert_eq!(bench.status(C), Status::Idle);
}

#[test]
fn a_change_of_places_serves_all_that_wait() {
    let mut bench = Bench::new(10, 9, vec![spec("a", 10), spec("b", 10)]);
    let first: Vec<Ticket> = (0..4).map(|_| bench.ask(A)).collect();
    let other = bench.ask(B);
    bench.ready(A);
    // The other model waits, but those who were there before are served, two at a time.
    let late = bench.ask(A);
    let mut granted = Vec::new();
    loop {
        let actions = bench.actions();
        let tickets = actions.iter().filter_map(|action| match action {
            Action::Grant(ticket, _) => Some(*ticket),
            _ => None,
        });
        let before = granted.len();
        granted.extend(tickets);
        if actions.contains(&Action::Unload(A)) {
            break;
        }
        assert!(granted.len() > before || granted.len() == 4, "{actions:?}");
        bench.release(A);
    }
    assert_eq!(granted, first);
    bench.ended(A);
    bench.ready(B);
    assert_eq!(bench.actions(), [Action::Load(B), Action::Grant(other, B)]);
    bench.release(B);
    assert_eq!(bench.actions(), [Action::Unload(B)]);
    bench.ended(B);
    bench.ready(A);
    assert_eq!(bench.actions(), [Action::Load(A), Action::Grant(late, A)]);
}

#[test]
fn when_those_who_need_the_room_go_away_the_model_stays() {
    let mut bench = Bench::new(10, 9, vec![spec("a", 10), spec("b", 10)]);
    bench.ask(A);
    bench.ready(A);
    let other = bench.ask(B);
    bench.actions();
    let second = bench.ask(A);
    assert_eq!(bench.actions(), [], "it waits behind the other model");
    assert!(bench.fleet.cancel(other, bench.now));
    assert_eq!(bench.actions(), [Action::Grant(second, A)]);
    assert!(!bench.fleet.cancel(second, bench.now));
}

#[test]
fn queues_are_bounded() {
    let mut bench = Bench::three();
    for _ in 0..8 {
        bench.ask(A);
    }
    let refusal = bench.fleet.request(A, bench.now).unwrap_err();
    assert!(
        matches!(refusal, Refusal::ModelBusy { waiting: 8, .. }),
        "{refusal}"
    );
    for _ in 0..4 {
        bench.ask(B);
    }
    let refusal = bench.fleet.request(B, bench.now).unwrap_err();
    assert!(
        matches!(refusal, Refusal::ServerBusy { waiting: 12 }),
        "{refusal}"
    );
}

#[test]
fn a_failed_load_is_reported_and_tried_again_later() {
    let mut bench = Bench::three();
    let mut pause = Duration::from_secs(1);
    for _ in 0..8 {
        let ticket = bench.ask(A);
        bench
            .fleet
            .ended(A, Some("no such file".to_owned()), bench.now);
        let refusal = Refusal::LoadFailed {
            model: "a".to_owned(),
            reason: "no such file".to_owned(),
            retry_in: pause,
        };
        assert_eq!(
            bench.actions(),
            [Action::Load(A), Action::Refuse(ticket, refusal.clone())]
        );
        assert_eq!(bench.fleet.request(A, bench.now), Err(refusal));
        let status = bench.fleet.status(A, bench.now);
        assert_eq!(status.status, Status::Failed);
        assert_eq!(status.failure.as_deref(), Some("no such file"));
        assert_eq!(status.retry_in, Some(pause));
        bench.pass(pause);
        pause = (2 * pause).min(MINUTE);
    }
    // Somebody who asks for the load itself does not wait, and a good load forgets.
    bench.fleet.ended_after_request(A, &mut bench.now);
    bench.fleet.load(A, bench.now);
    bench.ready(A);
    assert_eq!(bench.fleet.status(A, bench.now).failure, None);
}

impl Fleet {
    /// One more failure, so that a pause is under way.
    fn ended_after_request(&mut self, model: ModelId, now: &mut Instant) {
        self.request(model, *now).unwrap();
        self.ended(model, Some("again".to_owned()), *now);
        assert!(self.request(model, *now).is_err());
    }
}

#[test]
fn a_model_that_ends_by_itself_is_loaded_again() {
    let mut bench = Bench::three();
    bench.ask(A);
    bench.ready(A);
    bench.actions();
    // Its file was replaced: no failure, and the request still ends later.
    bench.ended(A);
    bench.release(A);
    let ticket = bench.ask(A);
    bench.ready(A);
    assert_eq!(bench.actions(), [Action::Load(A), Action::Grant(ticket, A)]);
}

#[test]
fn unloading_a_model_that_loads_ends_the_load() {
    let mut bench = Bench::three();
    let ticket = bench.ask(A);
    bench.actions();
    bench.fleet.unload(A, bench.now);
    bench.fleet.unload(A, bench.now);
    let refusal = Refusal::Unloaded {
        model: "a".to_owned(),
    };
    assert_eq!(
        bench.actions(),
        [Action::Unload(A), Action::Refuse(ticket, refusal)]
    );
    bench
        .fleet
        .ended(A, Some("loading was cancelled".to_owned()), bench.now);
    assert_eq!(bench.status(A), Status::Unloaded);
    // The other way round: it was over when the end was asked for.
    bench.ask(A);
    bench.fleet.unload(A, bench.now);
    bench.ready(A);
    bench.actions();
    assert_eq!(bench.status(A), Status::Unloading);
}

#[test]
fn what_a_model_really_holds_counts() {
    let mut bench = Bench::three();
    bench.use_once(A);
    bench.ask(B);
    bench.actions();
    bench.fleet.ready(B, 15, bench.now);
    let actions = bench.actions();
    assert!(actions.contains(&Action::Unload(A)), "{actions:?}");
    // More than the budget alone: it is not kept.
    bench.ended(A);
    bench.ask(C);
    bench.release(B);
    bench.actions();
    bench.ended(B);
    bench.fleet.ready(C, 21, bench.now);
    let actions = bench.actions();
    let refused = actions.iter().any(|action| match action {
        Action::Refuse(_, refusal) => refusal
            .to_string()
            .contains("holds 21 B, more than the budget of 20 B"),
        _ => false,
    });
    assert!(
        refused && actions.contains(&Action::Unload(C)),
        "{actions:?}"
    );
    bench.ended(C);
    bench.pass(MINUTE);
    bench.ask(C);
    assert!(
        matches!(bench.actions()[..], [Action::Refuse(..)]),
        "it is known to be too large"
    );
}

#[test]
fn closing_waits_for_what_runs() {
    let mut bench = Bench::three();
    bench.use_once(B);
    bench.ask(A);
    bench.ready(A);
    bench.actions();
    let waiting = bench.ask(C);
    bench.actions();
    bench.fleet.close(bench.now);
    let actions = bench.actions();
    assert!(
        actions.contains(&Action::Refuse(waiting, Refusal::ShuttingDown)),
        "{actions:?}"
    );
    assert_eq!(
        bench.fleet.request(A, bench.now),
        Err(Refusal::ShuttingDown)
    );
    assert_eq!(bench.status(A), Status::Running);
    bench.release(A);
    assert_eq!(bench.actions(), [Action::Unload(A)]);
    bench.ended(A);
    bench.ended(B);
    assert!(bench.fleet.has_nothing_loaded());
}

/// What the test knows about the world outside the fleet.
#[derive(Default)]
struct World {
    loading: BTreeSet<ModelId>,
    loaded: BTreeSet<ModelId>,
    unloading: BTreeSet<ModelId>,
    waiting: BTreeMap<Ticket, ModelId>,
    running: BTreeMap<ModelId, usize>,
}

impl World {
    fn take(&mut self, action: Action) {
        match action {
            Action::Load(model) => {
                assert!(!self.is_present(model), "{model:?} is loaded twice");
                self.loading.insert(model);
            }
            Action::Unload(model) => {
                assert_eq!(self.running(model), 0, "{model:?} has requests");
                assert!(self.loading.remove(&model) || self.loaded.remove(&model));
                self.unloading.insert(model);
            }
            Action::Grant(ticket, model) => {
                assert!(self.loaded.contains(&model), "{model:?} is not there");
                assert_eq!(self.waiting.remove(&ticket), Some(model));
                *self.running.entry(model).or_default() += 1;
                assert!(self.running(model) <= 2);
            }
            Action::Refuse(ticket, _) => assert!(self.waiting.remove(&ticket).is_some()),
        }
    }

    fn is_present(&self, model: ModelId) -> bool {
        [&self.loading, &self.loaded, &self.unloading]
            .iter()
            .any(|set| set.contains(&model))
    }

    fn running(&self, model: ModelId) -> usize {
        self.running.get(&model).copied().unwrap_or(0)
    }
}

#[derive(Clone, Debug)]
enum Event {
    Ask(usize),
    Cancel(usize),
    Release(usize, bool),
    LoadEnds(usize, bool),
    UnloadEnds(usize),
    Load(usize),
    Unload(usize),
    Wait(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let model = 0..4usize;
    let event = prop_oneof![
        6 => model.clone().prop_map(Event::Ask),
        1 => (0..8usize).prop_map(Event::Cancel),
        5 => (model.clone(), any::<bool>()).prop_map(|(m, k)| Event::Release(m, k)),
        4 => (model.clone(), prop::bool::weighted(0.8)).prop_map(|(m, good)| Event::LoadEnds(m, good)),
        4 => model.clone().prop_map(Event::UnloadEnds),
        1 => model.clone().prop_map(Event::Load),
        1 => model.prop_map(Event::Unload),
        2 => (0..400u64).prop_map(Event::Wait),
    ];
    prop::collection::vec(event, 1..120)
}

const NEED_BYTES: [u64; 4] = [10, 6, 8, 3];
const BUDGET_BYTES: u64 = 17;

fn apply(bench: &mut Bench, world: &mut World, event: Event) {
    let now = bench.now;
    match event {
        Event::Ask(index) => {
            if let Ok(ticket) = bench.fleet.request(ModelId(index), now) {
                world.waiting.insert(ticket, ModelId(index));
            }
        }
        Event::Cancel(index) => {
            if let Some(&ticket) = world.waiting.keys().nth(index) {
                assert!(bench.fleet.cancel(ticket, now));
                world.waiting.remove(&ticket);
            }
        }
        Event::Release(index, keeps) => {
            let model = ModelId(index);
            if world.running(model) > 0 {
                *world.running.get_mut(&model).unwrap() -= 1;
                bench.fleet.release(model, keeps.then_some(Ttl::Never), now);
            }
        }
        Event::LoadEnds(index, is_good) => {
            let model = ModelId(index);
            if world.loading.remove(&model) {
                if is_good {
                    world.loaded.insert(model);
                    bench.fleet.ready(model, NEED_BYTES[index], now);
                } else {
                    bench.fleet.ended(model, Some("bad".to_owned()), now);
                }
            }
        }
        Event::UnloadEnds(index) => {
            if world.unloading.remove(&ModelId(index)) {
                bench.fleet.ended(ModelId(index), None, now);
            }
        }
        Event::Load(index) => bench.fleet.load(ModelId(index), now),
        Event::Unload(index) => bench.fleet.unload(ModelId(index), now),
        Event::Wait(seconds) => bench.pass(Duration::from_secs(seconds)),
    }
    while let Some(action) = bench.fleet.next_action() {
        world.take(action);
        let present = (0..4).filter(|index| world.is_present(ModelId(*index)));
        let bytes: u64 = present.clone().map(|index| NEED_BYTES[index]).sum();
        assert!(bytes <= BUDGET_BYTES, "{bytes} bytes");
        assert!(present.clone().count() <= 2);
        assert!(
            present.filter(|index| *index < 2).count() <= 1,
            "both of a group"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens in whatever order: the limits hold, and everybody is served in the end.
    #[test]
    fn limits_hold_and_nobody_waits_for_ever(events in events()) {
        let mut specs: Vec<MemberSpec> =
            NEED_BYTES.iter().map(|bytes| spec("m", *bytes)).collect();
        specs[0].group = Some("g".to_owned());
        specs[1].group = Some("g".to_owned());
        let mut bench = Bench::new(BUDGET_BYTES, 2, specs);
        let mut world = World::default();
        for event in events {
            apply(&mut bench, &mut world, event);
        }
        // From here on all goes well.
        for _ in 0..200 {
            if world.waiting.is_empty() && world.running.values().all(|count| *count == 0) {
                break;
            }
            for index in 0..4 {
                apply(&mut bench, &mut world, Event::LoadEnds(index, true));
                apply(&mut bench, &mut world, Event::UnloadEnds(index));
                apply(&mut bench, &mut world, Event::Release(index, false));
            }
        }
        prop_assert!(world.waiting.is_empty(), "{:?} wait in {:?}", world.waiting, bench.fleet);
        // And then everything leaves: one after the other, where models that were told to load wait for each other's room.
        bench.pass(6 * MINUTE);
        for _ in 0..8 {
            for index in 0..4 {
                apply(&mut bench, &mut world, Event::LoadEnds(index, true));
                apply(&mut bench, &mut world, Event::UnloadEnds(index));
            }
            bench.pass(6 * MINUTE);
        }
        for index in 0..4 {
            apply(&mut bench, &mut world, Event::UnloadEnds(index));
            let status = bench.fleet.status(ModelId(index), bench.now);
            let may_stay = status.stays;
            prop_assert!(may_stay || !world.is_present(ModelId(index)), "{status:?}");
        }
    }
}
