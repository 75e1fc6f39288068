//! Where each destination of a sticky split has its users: a line on which the hash of a user is a place.
//!
//! Everybody is on the line, destinations own parts of it, and a part's length is a weight. Who owns what is made of the
//! weights alone, so that each client and each replica makes it alike. Each destination has a home, from which its part grows to
//! the right, up to the next home. What it has more than that lies on what is left of the line, so that a large one gives way
//! wherever a small one grows. So a weight that moves between a large destination and a small one moves as many users and no
//! more, and one more destination takes its users from those that lose weight; in any other case, twice as many move at most
//! among three.

/// How long the line is: the sum of all weights.
pub const LINE: u32 = 1_000_000;

/// A part of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The position of the destination that owns it.
    pub destination: usize,
    /// How long it is; never 0.
    pub length: u32,
}

/// The whole line, for destinations with these weights. Their order has to be the same whenever they are.
pub fn parts(weights: &[u32]) -> Vec<Part> {
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    // Sums are rounded, and not each weight by itself: they make up the line, neither more nor less.
    let place = |sum: u64| (sum * u64::from(LINE) + total / 2).checked_div(total).unwrap_or(0);
    let lengths = weights.iter().scan(0, |sum, weight| {
        let before = place(*sum);
        *sum += u64::from(*weight);
        Some(u32::try_from(place(*sum) - before).unwrap_or(LINE))
    });
    let homes: Vec<u32> = (0..weights.len()).map(home).collect();
    let mut line = Line::default();
    let mut surpluses = Vec::new();
    for (destination, (home, length)) in homes.iter().zip(lengths).enumerate() {
        let next = homes.iter().copied().filter(|other| other > home).min().unwrap_or(LINE);
        let at_home = length.min(next - home);
        line.own(destination, *home, home + at_home);
        line.free.push((home + at_home, next));
        surpluses.push((destination, *home, length - at_home));
    }
    line.free.sort_unstable();
    for (destination, home, surplus) in surpluses {
        line.grow(destination, home, surplus);
    }
    line.parts()
}

/// Pieces of the line, from one place to another.
#[derive(Default)]
struct Line {
    owned: Vec<(u32, u32, usize)>,
    free: Vec<(u32, u32)>,
}

impl Line {
    fn own(&mut self, destination: usize, start: u32, end: u32) {
        if start < end {
            self.owned.push((start, end, destination));
        }
    }

    /// Takes as much of what is free, from this place on to the right and then from the beginning.
    fn grow(&mut self, destination: usize, from: u32, mut length: u32) {
        let free = std::mem::take(&mut self.free);
        let right = free.iter().map(|(start, end)| ((*start).max(from), *end));
        let wrapped = free.iter().map(|(start, end)| (*start, (*end).min(from)));
        for (start, end) in right.chain(wrapped).filter(|(start, end)| start < end) {
            let taken = length.min(end - start);
            length -= taken;
            self.own(destination, start, start + taken);
            self.free.push((start + taken, end));
        }
        self.free.sort_unstable();
    }

    fn parts(mut self) -> Vec<Part> {
        self.owned.sort_unstable();
        let mut parts: Vec<Part> = Vec::new();
        for (start, end, destination) in self.owned {
            match parts.last_mut() {
                Some(last) if last.destination == destination => last.length += end - start,
                _ => parts.push(Part { destination, length: end - start }),
            }
        }
        parts
    }
}

/// Homes are as far apart as they can be, however many there are: 0, 1/2, 1/4, 3/4, 1/8, ... of the line.
fn home(position: usize) -> u32 {
    let number = u32::try_from(position).unwrap_or(u32::MAX);
    let fraction = u64::from(number.reverse_bits());
    u32::try_from((fraction * u64::from(LINE)) >> 32).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: u64 = 10_000;

    /// Where each user is.
    fn users(weights: &[u32]) -> Vec<usize> {
        let parts = parts(weights);
        assert_eq!(parts.iter().map(|part| part.length).sum::<u32>(), LINE, "{weights:?}");
        let of = |user: u64| {
            let mut place = xxhash_rust::xxh64::xxh64(format!("user-{user}").as_bytes(), 0) % u64::from(LINE);
            let owner = parts.iter().find(|part| {
                let is_in = place < u64::from(part.length);
                place = place.saturating_sub(u64::from(part.length));
                is_in
            });
            owner.unwrap().destination
        };
        (0..USERS).map(of).collect()
    }

    /// How many users in a hundred are elsewhere after a change.
    fn moved(before: &[u32], after: &[u32]) -> f64 {
        let moved = users(before).iter().zip(users(after)).filter(|(before, after)| **before != *after).count();
        moved as f64 * 100.0 / USERS as f64
    }

    #[test]
    fn shares_are_the_weights() {
        for weights in [&[90, 10][..], &[1, 1], &[80, 10, 10], &[1, 2, 3, 4], &[5, 0, 95], &[1, 999_999], &[7]] {
            let total: u32 = weights.iter().sum();
            let users = users(weights);
            for (destination, weight) in weights.iter().enumerate() {
                let share = users.iter().filter(|user| **user == destination).count() as f64 / USERS as f64;
                let expected = f64::from(*weight) / f64::from(total);
                assert!((share - expected).abs() < 0.02, "{weights:?}: {destination} has {share}");
            }
        }
        let lengths: Vec<_> = parts(&[90, 10]).iter().map(|part| (part.destination, part.length)).collect();
        assert_eq!(lengths, [(0, 500_000), (1, 100_000), (0, 400_000)]);
        assert!(parts(&[]).is_empty() && parts(&[0, 0]).is_empty(), "nobody owns it");
    }

    #[test]
    fn a_moved_weight_moves_as_many_users_and_no_more() {
        for (before, after, percent) in [
            (&[90, 10][..], &[80, 20][..], 10.0),
            (&[80, 20], &[90, 10], 10.0),
            (&[100, 0], &[95, 5], 5.0),
            (&[10, 90], &[0, 100], 10.0),
            (&[1, 1], &[2, 1], 16.7),
            (&[9, 1], &[90, 10], 0.0),
            // Three: each with the first, in either direction.
            (&[80, 10, 10], &[70, 20, 10], 10.0),
            (&[80, 10, 10], &[70, 10, 20], 10.0),
            (&[80, 10, 10], &[90, 0, 10], 10.0),
            // The large one is any of them.
            (&[10, 80, 10], &[20, 70, 10], 10.0),
            (&[10, 80, 10], &[10, 70, 20], 10.0),
            (&[10, 10, 80], &[20, 10, 70], 10.0),
            (&[10, 10, 80], &[10, 20, 70], 10.0),
            // One more, and one fewer.
            (&[90, 10], &[80, 10, 10], 10.0),
            (&[80, 10, 10], &[90, 10], 10.0),
            (&[80, 10, 10], &[70, 10, 10, 10], 10.0),
        ] {
            let moved = moved(before, after);
            assert!((moved - percent).abs() < 1.2, "{before:?} to {after:?}: {moved} %");
        }
    }

    #[test]
    fn in_any_case_no_more_than_twice_as_many_move_among_three() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..200 {
            let before = [random.u32(0..50), random.u32(0..50), random.u32(1..50)];
            let from = usize::from(before[0] == 0) + usize::from(before[0] == 0 && before[1] == 0);
            let to = (from + random.usize(1..3)) % 3;
            let mut after = before;
            let amount = random.u32(1..=before[from]);
            after[from] -= amount;
            after[to] += amount;
            let total: u32 = before.iter().sum();
            let (moved, changed) = (moved(&before, &after), f64::from(amount) * 100.0 / f64::from(total));
            assert!(moved < changed * 2.0 + 3.0, "{before:?} to {after:?}: {moved} % for {changed} %");
        }
    }
}
