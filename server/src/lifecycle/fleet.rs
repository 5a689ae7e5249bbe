//! The state of all models, and every decision about it.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::status::{ModelStatus, Status};
use super::{Action, FleetLimits, MemberSpec, ModelId, Refusal, Ticket};
use crate::config::{Ttl, shown_bytes};

const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// All models. See the [module](super).
#[derive(Debug)]
pub struct Fleet {
    limits: FleetLimits,
    members: Vec<Member>,
    next_ticket: u64,
    is_closing: bool,
    actions: VecDeque<Action>,
}

#[derive(Debug)]
struct Member {
    spec: MemberSpec,
    state: State,
    /// Ascending.
    waiting: VecDeque<Ticket>,
    running: usize,
    /// Since when somebody without a ticket wants it loaded: the order among those who wait.
    load_asked: Option<Ticket>,
    /// When the last request ended or, before the first one, when it was loaded.
    last_used: Option<Instant>,
    /// Whether a request ran since it was loaded.
    was_used: bool,
    ttl: Ttl,
    failure: Option<Failure>,
    held_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Unloaded,
    Loading {
        fraction: f32,
        is_cancelled: bool,
    },
    Ready {
        /// It gives way once all requests before this one have run.
        leaving: Option<Ticket>,
        /// It leaves because somebody said so, rather than for room.
        is_asked: bool,
    },
    Unloading,
}

#[derive(Debug)]
struct Failure {
    reason: String,
    count: u32,
    retry_at: Instant,
}

impl Member {
    fn is_loaded(&self) -> bool {
        self.state != State::Unloaded
    }

    fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready { .. })
    }

    /// Whether it leaves whatever others need.
    fn is_leaving_anyway(&self) -> bool {
        matches!(
            self.state,
            State::Unloading
                | State::Loading {
                    is_cancelled: true,
                    ..
                }
                | State::Ready { is_asked: true, .. }
        )
    }

    /// Bytes that count in the budget now.
    fn counted_bytes(&self) -> u64 {
        match self.state {
            State::Unloaded => 0,
            State::Loading { .. } => self.spec.need_bytes,
            State::Ready { .. } | State::Unloading => self.held_bytes,
        }
    }

    /// The oldest request that waits for it to be loaded.
    fn wanted_since(&self) -> Option<Ticket> {
        if self.is_loaded() {
            return None;
        }
        self.waiting
            .front()
            .copied()
            .into_iter()
            .chain(self.load_asked)
            .min()
    }

    fn expires_at(&self) -> Option<Instant> {
        let is_idle = self.is_ready() && self.running == 0 && self.waiting.is_empty();
        match (self.ttl, self.last_used) {
            // A model that was loaded ahead of its first request waits for that.
            (Ttl::After(time), _) if time.is_zero() && !self.was_used => None,
            (Ttl::After(time), Some(last_used)) if is_idle => last_used.checked_add(time),
            _ => None,
        }
    }

    fn retry_in(&self, now: Instant) -> Duration {
        let failure = self.failure.as_ref();
        failure.map_or(Duration::ZERO, |failure| {
            failure.retry_at.saturating_duration_since(now)
        })
    }
}

impl Fleet {
    /// A fleet with nothing loaded.
    pub fn new(limits: FleetLimits, specs: Vec<MemberSpec>) -> Fleet {
        let member = |spec: MemberSpec| Member {
            ttl: spec.ttl,
            spec,
            state: State::Unloaded,
            waiting: VecDeque::new(),
            running: 0,
            load_asked: None,
            last_used: None,
            was_used: false,
            failure: None,
            held_bytes: 0,
        };
        Fleet {
            limits,
            members: specs.into_iter().map(member).collect(),
            next_ticket: 0,
            is_closing: false,
            actions: VecDeque::new(),
        }
    }

    /// The next thing to do.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// A request for a model. It is granted or refused by a later action.
    ///
    /// # Errors
    ///
    /// When it cannot wait: [`Refusal`].
    pub fn request(&mut self, model: ModelId, now: Instant) -> Result<Ticket, Refusal> {
        if self.is_closing {
            return Err(Refusal::ShuttingDown);
        }
        let waiting = self.members.iter().map(|member| member.waiting.len()).sum();
        let member = &self.members[model.0];
        let retry_in = member.retry_in(now);
        if let Some(failure) = member.failure.as_ref().filter(|_| !retry_in.is_zero()) {
            return Err(Refusal::LoadFailed {
                model: member.spec.name.clone(),
                reason: failure.reason.clone(),
                retry_in,
            });
        }
        let runs_now = member.state
            == State::Ready {
                leaving: None,
                is_asked: false,
            }
            && member.running < member.spec.concurrency_limit;
        if !runs_now && member.waiting.len() >= member.spec.queue_limit {
            return Err(Refusal::ModelBusy {
                model: member.spec.name.clone(),
                waiting: member.waiting.len(),
            });
        }
        if !runs_now && waiting >= self.limits.queue_limit {
            return Err(Refusal::ServerBusy { waiting });
        }
        let ticket = self.draw_ticket();
        self.members[model.0].waiting.push_back(ticket);
        self.settle(now);
        Ok(ticket)
    }

    /// A request that waits went away. `false` if it does not wait any more: it was granted or refused.
    pub fn cancel(&mut self, ticket: Ticket, now: Instant) -> bool {
        let found = self.members.iter_mut().find_map(|member| {
            let index = member
                .waiting
                .iter()
                .position(|waiting| *waiting == ticket)?;
            member.waiting.remove(index)
        });
        self.settle(now);
        found.is_some()
    }

    /// A request that was granted has ended. `keep_alive`: how long it wants the model to stay, if it says so.
    pub fn release(&mut self, model: ModelId, keep_alive: Option<Ttl>, now: Instant) {
        let member = &mut self.members[model.0];
        assert!(
            member.running > 0,
            "{}: a request ended twice",
            member.spec.name
        );
        member.running -= 1;
        member.last_used = Some(now);
        member.ttl = keep_alive.unwrap_or(member.spec.ttl);
        self.settle(now);
    }

    /// Loads a model without a request; at once if its last load failed. Nothing happens if it is loaded.
    pub fn load(&mut self, model: ModelId, now: Instant) {
        let ticket = self.draw_ticket();
        let member = &mut self.members[model.0];
        if !member.is_loaded() && !self.is_closing {
            if let Some(failure) = &mut member.failure {
                failure.retry_at = now;
            }
            member.load_asked.get_or_insert(ticket);
        }
        self.settle(now);
    }

    /// Unloads a model once the requests that run or wait for it have ended. A load that is under way is ended, and the requests
    /// that wait for it are refused.
    pub fn unload(&mut self, model: ModelId, now: Instant) {
        let before = Ticket(self.next_ticket);
        let member = &mut self.members[model.0];
        member.load_asked = None;
        match &mut member.state {
            State::Unloaded | State::Unloading => {}
            State::Loading { is_cancelled, .. } => {
                let was_cancelled = std::mem::replace(is_cancelled, true);
                let refusal = Refusal::Unloaded {
                    model: member.spec.name.clone(),
                };
                if !was_cancelled {
                    self.actions.push_back(Action::Unload(model));
                }
                self.refuse_waiting(model, &refusal);
            }
            State::Ready { leaving, is_asked } => {
                leaving.get_or_insert(before);
                *is_asked = true;
            }
        }
        self.settle(now);
    }

    /// How far a load is, 0 to 1.
    pub fn progress(&mut self, model: ModelId, loaded: f32) {
        if let State::Loading { fraction, .. } = &mut self.members[model.0].state {
            *fraction = loaded;
        }
    }

    /// A load has ended well; the model holds so many bytes.
    pub fn ready(&mut self, model: ModelId, held_bytes: u64, now: Instant) {
        let member = &mut self.members[model.0];
        let State::Loading { is_cancelled, .. } = member.state else {
            panic!("{}: loaded in state {:?}", member.spec.name, member.state);
        };
        member.held_bytes = held_bytes;
        // What it holds is known now: the next load needs as much.
        member.spec.need_bytes = held_bytes;
        member.load_asked = None;
        member.last_used = Some(now);
        member.was_used = false;
        member.ttl = member.spec.ttl;
        member.failure = None;
        if held_bytes > self.limits.budget_bytes {
            member.state = State::Unloading;
            let reason = self.too_large(held_bytes, "holds");
            self.fail(model, reason, now);
            self.actions.push_back(Action::Unload(model));
        } else if is_cancelled {
            // The end of the load was asked for when it was over already: the answer to that is under way.
            member.state = State::Unloading;
        } else {
            member.state = State::Ready {
                leaving: None,
                is_asked: false,
            };
        }
        self.settle(now);
    }

    /// A model is gone: it was unloaded, its load failed, or it ended by itself. The reason is that of a failure.
    pub fn ended(&mut self, model: ModelId, failure: Option<String>, now: Instant) {
        let member = &mut self.members[model.0];
        let state = std::mem::replace(&mut member.state, State::Unloaded);
        assert!(
            state != State::Unloaded,
            "{}: ended twice",
            member.spec.name
        );
        member.held_bytes = 0;
        member.load_asked = None;
        let was_cancelled = matches!(
            state,
            State::Loading {
                is_cancelled: true,
                ..
            }
        );
        if let Some(reason) = failure.filter(|_| !was_cancelled && state != State::Unloading) {
            self.fail(model, reason, now);
        }
        self.settle(now);
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) {
        self.settle(now);
    }

    /// When [`tick`](Fleet::tick) has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.members.iter().filter_map(Member::expires_at).min()
    }

    /// Refuses everything that waits and everything new, and unloads what is idle. What runs goes on.
    pub fn close(&mut self, now: Instant) {
        self.is_closing = true;
        for index in 0..self.members.len() {
            self.members[index].load_asked = None;
            self.refuse_waiting(ModelId(index), &Refusal::ShuttingDown);
            self.unload(ModelId(index), now);
        }
    }

    /// Whether nothing is in memory or on its way there.
    pub fn has_nothing_loaded(&self) -> bool {
        self.members.iter().all(|member| !member.is_loaded())
    }

    /// Bytes that count in the budget now.
    pub fn counted_bytes(&self) -> u64 {
        self.members.iter().map(Member::counted_bytes).sum()
    }

    /// What is shared.
    pub fn limits(&self) -> FleetLimits {
        self.limits
    }

    /// Number of models.
    pub fn model_count(&self) -> usize {
        self.members.len()
    }

    /// How a model is.
    pub fn status(&self, model: ModelId, now: Instant) -> ModelStatus {
        let member = &self.members[model.0];
        let status = match member.state {
            State::Unloaded if member.failure.is_some() => Status::Failed,
            State::Unloaded => Status::Unloaded,
            State::Loading { .. } => Status::Loading,
            State::Ready { .. } if member.running == 0 => Status::Idle,
            State::Ready { .. } => Status::Running,
            State::Unloading => Status::Unloading,
        };
        ModelStatus {
            name: member.spec.name.clone(),
            status,
            progress: match member.state {
                State::Loading { fraction, .. } => Some(fraction),
                _ => None,
            },
            running: member.running,
            waiting: member.waiting.len(),
            counted_bytes: member.counted_bytes(),
            idle: member
                .last_used
                .map(|used| now.saturating_duration_since(used)),
            expires_in: member
                .expires_at()
                .map(|at| at.saturating_duration_since(now)),
            stays: member.is_ready() && member.ttl == Ttl::Never,
            failure: member
                .failure
                .as_ref()
                .map(|failure| failure.reason.clone()),
            retry_in: Some(member.retry_in(now)).filter(|time| !time.is_zero()),
        }
    }

    fn draw_ticket(&mut self) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        ticket
    }

    /// Takes every decision that is due.
    fn settle(&mut self, now: Instant) {
        let before_all = Ticket(self.next_ticket);
        self.make_room(now);
        for index in 0..self.members.len() {
            let State::Ready { leaving, .. } = self.members[index].state else {
                continue;
            };
            self.grant(ModelId(index), leaving.unwrap_or(before_all));
            let member = &mut self.members[index];
            let first = member.waiting.front();
            let has_served = leaving.is_some_and(|end| first.is_none_or(|ticket| *ticket >= end));
            let has_expired = member.expires_at().is_some_and(|at| at <= now);
            if member.running == 0 && (has_served || has_expired) {
                member.state = State::Unloading;
                self.actions.push_back(Action::Unload(ModelId(index)));
            }
        }
    }

    /// Lets requests before `end` run, as far as there is room in the batch.
    fn grant(&mut self, model: ModelId, end: Ticket) {
        let member = &mut self.members[model.0];
        while member.running < member.spec.concurrency_limit
            && let Some(ticket) = member
                .waiting
                .front()
                .copied()
                .filter(|ticket| *ticket < end)
        {
            member.waiting.pop_front();
            member.running += 1;
            member.was_used = true;
            self.actions.push_back(Action::Grant(ticket, model));
        }
    }

    /// Starts the loads for which there is room; where there is none, says who has to leave for the first of them.
    fn make_room(&mut self, now: Instant) {
        let mut leaving = Vec::new();
        while let Some(model) = self.first_wanted() {
            let spec = &self.members[model.0].spec;
            let Some(room_bytes) = self.limits.budget_bytes.checked_sub(spec.need_bytes) else {
                let reason = self.too_large(spec.need_bytes, "needs");
                self.fail(model, reason, now);
                continue;
            };
            let group = spec.group.as_ref();
            leaving = self.in_the_way(room_bytes, self.limits.max_loaded - 1, group);
            if !leaving.is_empty() {
                break;
            }
            self.members[model.0].state = State::Loading {
                fraction: 0.0,
                is_cancelled: false,
            };
            self.actions.push_back(Action::Load(model));
        }
        if leaving.is_empty() {
            // A model may hold more than was known before its load.
            leaving = self.in_the_way(self.limits.budget_bytes, self.limits.max_loaded, None);
        }
        let before = Ticket(self.next_ticket);
        for (index, member) in self.members.iter_mut().enumerate() {
            if let State::Ready {
                leaving: end,
                is_asked,
            } = &mut member.state
            {
                match leaving.contains(&ModelId(index)) || *is_asked {
                    true => _ = end.get_or_insert(before),
                    // Whoever needed its room went away.
                    false => *end = None,
                }
            }
        }
    }

    /// The model whose oldest request has waited longest for it to be loaded.
    fn first_wanted(&self) -> Option<ModelId> {
        let wanted = self.members.iter().enumerate();
        wanted
            .filter_map(|(index, member)| Some((member.wanted_since()?, ModelId(index))))
            .min()
            .map(|(_, model)| model)
    }

    /// The models that have to leave, or are leaving, until the others are at most so many, take at most so many bytes, and are of
    /// other groups.
    fn in_the_way(
        &self,
        mut room_bytes: u64,
        mut room_models: usize,
        group: Option<&String>,
    ) -> Vec<ModelId> {
        let members = self.members.iter().enumerate();
        let mut loaded: Vec<(usize, &Member)> =
            members.filter(|(_, member)| member.is_loaded()).collect();
        // The first ones stay longest: what cannot leave yet, then what is busy, then what was used last.
        loaded.sort_by_key(|(_, member)| {
            let is_busy = member.running > 0 || !member.waiting.is_empty();
            Reverse((!member.is_ready(), is_busy, member.last_used))
        });
        let mut leaving = Vec::new();
        for (index, member) in loaded {
            let bytes = member.counted_bytes();
            let shares_group = group.is_some() && group == member.spec.group.as_ref();
            if !member.is_leaving_anyway()
                && !shares_group
                && bytes <= room_bytes
                && room_models > 0
            {
                room_bytes -= bytes;
                room_models -= 1;
            } else {
                leaving.push(ModelId(index));
            }
        }
        leaving
    }

    fn too_large(&self, bytes: u64, verb: &str) -> String {
        let (bytes, budget) = (shown_bytes(bytes), shown_bytes(self.limits.budget_bytes));
        format!("it {verb} {bytes}, more than the budget of {budget}")
    }

    /// Notes a failed load, and refuses those who wait for it.
    fn fail(&mut self, model: ModelId, reason: String, now: Instant) {
        let member = &mut self.members[model.0];
        member.load_asked = None;
        let count = member.failure.as_ref().map_or(0, |failure| failure.count);
        let pause = BACKOFF_FIRST
            .saturating_mul(1 << count.min(16))
            .min(BACKOFF_MAX);
        member.failure = Some(Failure {
            reason: reason.clone(),
            count: count + 1,
            retry_at: now + pause,
        });
        let refusal = Refusal::LoadFailed {
            model: member.spec.name.clone(),
            reason,
            retry_in: pause,
        };
        self.refuse_waiting(model, &refusal);
    }

    fn refuse_waiting(&mut self, model: ModelId, refusal: &Refusal) {
        for ticket in std::mem::take(&mut self.members[model.0].waiting) {
            self.actions
                .push_back(Action::Refuse(ticket, refusal.clone()));
        }
    }
}
