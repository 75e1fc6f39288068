//! Requests that wait for a place, in an order that is fair among callers.
//!
//! Callers take turns (deficit round robin, where every request costs the same): one that sent a thousand requests is before one that
//! sent a single one for as many of them as its weight says, and no longer. A caller that comes back is the last in the round, so that
//! nothing need be remembered of those who have nothing waiting. Requests that can be left out come behind all others. Where the
//! queue is full, the newest request gives way of the caller that has most of it (longest queue drop): whoever fills the queue cannot
//! keep others out of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A queue with turns.
#[derive(Debug)]
pub(crate) struct FairQueue<T> {
    /// Requests that matter.
    critical: Level<T>,
    /// Requests that can be left out.
    sheddable: Level<T>,
    /// Numbers of requests and of turns.
    numbers: u64,
}

/// A request that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// Whose it is.
    pub(crate) caller: u64,
    /// How many of the caller's there are at its turn; 0 is 1.
    pub(crate) weight: u32,
    /// Whether it can be left out.
    pub(crate) is_sheddable: bool,
}

/// One that waits: to take it out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    caller: u64,
    is_sheddable: bool,
    number: u64,
}

/// What becomes of a request that arrives.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Joined<T> {
    /// It waits.
    Waits(Ticket),
    /// It waits, in the place of this one.
    Displaces(Ticket, T),
    /// There is no room for it.
    Full(T),
}

/// Those of one criticality.
#[derive(Debug)]
struct Level<T> {
    callers: HashMap<u64, Caller<T>>,
    /// Callers by their turns.
    round: BTreeMap<u64, u64>,
    /// Callers by how much of the queue they have, for their weight.
    shares: BTreeSet<(u64, u64)>,
    waiting: usize,
}

#[derive(Debug)]
struct Caller<T> {
    weight: u32,
    turn: u64,
    /// How many more there are at this turn.
    left: u32,
    /// In the order in which they came; never none.
    waiting: BTreeMap<u64, T>,
}

impl<T> Caller<T> {
    /// How much of the queue so many are, for its weight.
    fn share(&self, waiting: usize) -> u64 {
        share(waiting, self.weight)
    }
}

fn share(waiting: usize, weight: u32) -> u64 {
    (waiting as u64).saturating_mul(1 << 20) / u64::from(weight.max(1))
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        FairQueue { critical: Level::default(), sheddable: Level::default(), numbers: 0 }
    }
}

impl<T> Default for Level<T> {
    fn default() -> Self {
        Level { callers: HashMap::new(), round: BTreeMap::new(), shares: BTreeSet::new(), waiting: 0 }
    }
}

impl<T> FairQueue<T> {
    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.critical.waiting + self.sheddable.waiting
    }

    /// How many of them matter.
    pub(crate) fn critical(&self) -> usize {
        self.critical.waiting
    }

    /// Whether the next one can be left out; `None` where there is none.
    pub(crate) fn next_is_sheddable(&self) -> Option<bool> {
        match (self.critical.waiting, self.sheddable.waiting) {
            (0, 0) => None,
            (critical, _) => Some(critical == 0),
        }
    }

    /// A request arrives, where `most` may wait at a time.
    pub(crate) fn join(&mut self, arrival: Arrival, most: usize, item: T) -> Joined<T> {
        let mut displaced = None;
        if self.len() >= most {
            displaced = self.make_room(&arrival);
            if displaced.is_none() {
                return Joined::Full(item);
            }
        }
        self.numbers += 1;
        let number = self.numbers;
        let Arrival { caller, weight, is_sheddable } = arrival;
        self.level(is_sheddable).add(caller, weight.max(1), number, item);
        let ticket = Ticket { caller, is_sheddable, number };
        match displaced {
            Some(displaced) => Joined::Displaces(ticket, displaced),
            None => Joined::Waits(ticket),
        }
    }

    /// The next one, whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let is_sheddable = self.next_is_sheddable()?;
        self.numbers += 1;
        let number = self.numbers;
        self.level(is_sheddable).pop(number)
    }

    /// Takes one out that does not wait any longer; `None` where it is not there.
    pub(crate) fn remove(&mut self, ticket: &Ticket) -> Option<T> {
        self.level(ticket.is_sheddable).take(ticket.caller, |waiting| waiting.remove(&ticket.number))
    }

    fn level(&mut self, is_sheddable: bool) -> &mut Level<T> {
        if is_sheddable { &mut self.sheddable } else { &mut self.critical }
    }

    /// Takes out the one that gives way to an arrival, if one does.
    fn make_room(&mut self, arrival: &Arrival) -> Option<T> {
        let is_first = !arrival.is_sheddable && self.sheddable.waiting > 0;
        let level = self.level(arrival.is_sheddable || is_first);
        let (most, caller) = *level.shares.last()?;
        let own = level.callers.get(&arrival.caller).map_or(0, |caller| caller.waiting.len());
        // Who would then have as much as the other one had gains nothing by it.
        let is_less = share(own + 1, arrival.weight) < most;
        (is_first || is_less).then(|| level.take(caller, |waiting| waiting.pop_last().map(|(_, item)| item))).flatten()
    }
}

impl<T> Level<T> {
    fn add(&mut self, caller: u64, weight: u32, number: u64, item: T) {
        let entry = self.callers.entry(caller).or_insert_with(|| {
            self.round.insert(number, caller);
            Caller { weight, turn: number, left: weight, waiting: BTreeMap::new() }
        });
        self.shares.remove(&(entry.share(entry.waiting.len()), caller));
        entry.waiting.insert(number, item);
        self.shares.insert((entry.share(entry.waiting.len()), caller));
        self.waiting += 1;
    }

    /// The first of the caller whose turn it is. A turn that is over comes again at this number.
    fn pop(&mut self, number: u64) -> Option<T> {
        let (turn, caller) = self.round.first_key_value().map(|(turn, caller)| (*turn, *caller))?;
        let item = self.take(caller, |waiting| waiting.pop_first().map(|(_, item)| item));
        if let Some(entry) = self.callers.get_mut(&caller) {
            entry.left = entry.left.saturating_sub(1);
            if entry.left == 0 {
                (entry.left, entry.turn) = (entry.weight, number);
                self.round.remove(&turn);
                self.round.insert(number, caller);
            }
        }
        item
    }

    /// Takes one of a caller's; a caller that has none any more has no turn.
    fn take(&mut self, caller: u64, choose: impl FnOnce(&mut BTreeMap<u64, T>) -> Option<T>) -> Option<T> {
        let entry = self.callers.get_mut(&caller)?;
        let before = entry.share(entry.waiting.len());
        let item = choose(&mut entry.waiting)?;
        self.waiting -= 1;
        self.shares.remove(&(before, caller));
        if entry.waiting.is_empty() {
            self.round.remove(&entry.turn);
            self.callers.remove(&caller);
        } else {
            self.shares.insert((entry.share(entry.waiting.len()), caller));
        }
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GREEDY: u64 = 1;
    const MODEST: u64 = 2;

    fn of(caller: u64) -> Arrival {
        Arrival { caller, weight: 1, is_sheddable: false }
    }

    /// Callers of those that are let in next.
    fn next(queue: &mut FairQueue<u64>, count: usize) -> Vec<u64> {
        (0..count).filter_map(|_| queue.pop()).collect()
    }

    #[test]
    fn callers_take_turns_whatever_they_sent() {
        let mut queue = FairQueue::default();
        for caller in [GREEDY, GREEDY, GREEDY, GREEDY, MODEST] {
            assert!(matches!(queue.join(of(caller), 100, caller), Joined::Waits(_)));
        }
        assert_eq!(next(&mut queue, 2), [GREEDY, MODEST]);
        queue.join(of(MODEST), 100, MODEST);
        assert_eq!(next(&mut queue, 9), [GREEDY, MODEST, GREEDY, GREEDY], "who comes back is the last of the round");
    }

    #[test]
    fn a_turn_is_as_long_as_a_caller_weighs() {
        let mut queue = FairQueue::default();
        for _ in 0..6 {
            queue.join(Arrival { weight: 3, ..of(GREEDY) }, 100, GREEDY);
            queue.join(of(MODEST), 100, MODEST);
        }
        assert_eq!(next(&mut queue, 8), [1, 1, 1, 2, 1, 1, 1, 2]);
    }

    #[test]
    fn what_can_be_left_out_comes_last_and_gives_way_first() {
        let mut queue = FairQueue::default();
        let sheddable = |caller| Arrival { is_sheddable: true, ..of(caller) };
        queue.join(sheddable(MODEST), 2, 20);
        queue.join(sheddable(GREEDY), 2, 10);
        assert!(matches!(queue.join(of(GREEDY), 2, 11), Joined::Displaces(_, 20)), "one of those with most");
        assert_eq!(queue.join(sheddable(MODEST), 2, 21), Joined::Full(21));
        assert_eq!(next(&mut queue, 3), [11, 10]);
    }

    #[test]
    fn whoever_fills_the_queue_keeps_nobody_out_of_it() {
        let mut queue = FairQueue::default();
        for number in 0..4 {
            queue.join(of(GREEDY), 4, number);
        }
        assert_eq!(queue.join(of(GREEDY), 4, 4), Joined::Full(4));
        assert!(matches!(queue.join(of(MODEST), 4, 20), Joined::Displaces(_, 3)), "the newest gives way");
        assert!(matches!(queue.join(of(MODEST), 4, 21), Joined::Displaces(_, 2)));
        assert_eq!(queue.join(of(MODEST), 4, 22), Joined::Full(22), "each has half of it");
        assert_eq!(next(&mut queue, 4), [0, 20, 1, 21]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Join {
            caller: u64,
            weight: u32,
            is_sheddable: bool,
        },
        Pop,
        /// One of those that wait, by its place among them.
        Remove(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..5_u64, 1..4_u32, any::<bool>())
                .prop_map(|(caller, weight, is_sheddable)| Step::Join { caller, weight, is_sheddable }),
            2 => Just(Step::Pop),
            1 => (0..20_usize).prop_map(Step::Remove),
        ]
    }

    proptest! {
        /// Beside a list of what has to be there: nobody is lost, nobody is there twice, and each caller's come in their order.
        #[test]
        fn everybody_who_waits_leaves_once(steps in prop::collection::vec(step(), 0..200), most in 1..12_usize) {
            let mut queue = FairQueue::default();
            let mut there: Vec<(u32, Arrival, Ticket)> = Vec::new();
            for (name, step) in (0_u32..).zip(steps) {
                match step {
                    Step::Join { caller, weight, is_sheddable } => {
                        let arrival = Arrival { caller, weight, is_sheddable };
                        match queue.join(arrival, most, name) {
                            Joined::Waits(ticket) => there.push((name, arrival, ticket)),
                            Joined::Displaces(ticket, other) => {
                                let at = there.iter().position(|(name, ..)| *name == other).expect("it waited");
                                let (_, gone, _) = there.remove(at);
                                let is_newest = |(_, one, _): &(u32, Arrival, Ticket)| {
                                    (one.caller, one.is_sheddable) != (gone.caller, gone.is_sheddable)
                                };
                                prop_assert!(there[at..].iter().all(is_newest), "the newest of its caller gives way");
                                prop_assert!(gone.is_sheddable || !is_sheddable);
                                there.push((name, arrival, ticket));
                            }
                            Joined::Full(same) => prop_assert_eq!((same, there.len()), (name, most)),
                        }
                    }
                    Step::Pop => match queue.pop() {
                        None => prop_assert!(there.is_empty()),
                        Some(popped) => {
                            let at = there.iter().position(|(name, ..)| *name == popped).expect("it waited");
                            let (_, gone, _) = there.remove(at);
                            prop_assert!(!gone.is_sheddable || there.iter().all(|(_, one, _)| one.is_sheddable));
                            let is_other = |(_, one, _): &(u32, Arrival, Ticket)| {
                                (one.caller, one.is_sheddable) != (gone.caller, gone.is_sheddable)
                            };
                            prop_assert!(there[..at].iter().all(is_other), "the first of its caller");
                        }
                    },
                    Step::Remove(at) => {
                        if at < there.len() {
                            let (name, _, ticket) = there.remove(at);
                            prop_assert_eq!(queue.remove(&ticket), Some(name));
                            prop_assert_eq!(queue.remove(&ticket), None);
                        }
                    }
                }
                prop_assert_eq!(queue.len(), there.len());
                prop_assert!(queue.critical.callers.len() <= most && queue.critical.round.len() <= most);
                prop_assert_eq!(queue.critical.shares.len(), queue.critical.callers.len());
            }
        }

        /// Of callers that always have something waiting each has its share, to one turn, whoever sends how much.
        #[test]
        fn callers_that_always_wait_have_their_shares(
            weights in prop::collection::vec(1..5_u32, 2..5),
            eager in prop::collection::vec(1..50_usize, 5),
            rounds in 1..200_usize,
        ) {
            let mut queue = FairQueue::default();
            let join = |queue: &mut FairQueue<usize>, caller: usize| {
                let arrival = Arrival { caller: caller as u64, weight: weights[caller], is_sheddable: false };
                queue.join(arrival, 1_000, caller)
            };
            for (caller, weight) in weights.iter().enumerate() {
                (0..eager[caller] + *weight as usize).for_each(|_| _ = join(&mut queue, caller));
            }
            let mut served = vec![0_usize; weights.len()];
            for _ in 0..rounds {
                let caller = queue.pop().expect("they always wait");
                served[caller] += 1;
                join(&mut queue, caller);
            }
            let all: usize = weights.iter().map(|weight| *weight as usize).sum();
            for (caller, weight) in weights.iter().enumerate() {
                let turns = rounds / all;
                let weight = *weight as usize;
                prop_assert!((turns * weight..=(turns + 1) * weight).contains(&served[caller]), "{served:?} {weights:?}");
            }
        }
    }
}
