//! The first of many routes that a request matches, found without looking at all of them.
//!
//! Every route stands in one chain, in the user's order: that of its key, which is the text of its path test, or
//! that of the routes without a key. A path leads to few keys: to itself, and to each of its starts that is as
//! long as some key. So it costs one look-up for each length that keys have, however many keys there are. The chains
//! that it leads to are followed side by side, smallest position first, and whatever they lead to is tested as a
//! whole: two texts of one hash cost a comparison, and change nothing.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use super::{Field, Unmet, header_matches, path_matches, query_matches};
use crate::error::Invalid;
use crate::model::{Fraction, HeaderTest, PathTest, QueryTest, RouteMatch};
use crate::request::RequestHead;

/// Up to this many routes are tried one after the other: cheaper than any index.
const WALKED: usize = 4;
/// So many chains are followed side by side; those of a path that leads to more are followed one after the other.
/// Such a path has that many keys that are starts of one another.
const CHAINS: usize = 16;
/// The end of a chain.
const END: u32 = u32::MAX;

/// Finds the first of many routes that matches a request.
#[derive(Debug)]
pub struct RouteIndex {
    matchers: Vec<Matcher>,
    /// The next route of the same chain.
    next: Vec<u32>,
    keys: Keys,
    /// The lengths of keys that are starts of paths, ascending.
    lengths: Vec<Length>,
    has_exact: bool,
    /// Whether it matters where the path ends and the query begins.
    has_whole: bool,
    /// Where the chain of the routes without a key begins.
    rest: u32,
}

/// What is known of the keys of one length, before any look-up.
#[derive(Clone, Copy, Debug)]
struct Length {
    /// In bytes.
    length: usize,
    /// The last bytes of the prefixes, a bit for each.
    ends: u128,
    /// Whether there are keys that end where a segment of the path does.
    separated: bool,
}

impl Length {
    fn of<'l>(key: &str, lengths: &'l mut BTreeMap<usize, Length>) -> &'l mut Length {
        let length = key.len();
        lengths.entry(length).or_insert(Length { length, ends: 0, separated: false })
    }
}

impl RouteIndex {
    /// Indexes routes in their order.
    pub fn new<'m>(matches: impl IntoIterator<Item = &'m RouteMatch>) -> Result<Self, Invalid> {
        let matches: Vec<&RouteMatch> = matches.into_iter().collect();
        // One less, since the last number is the end of a chain.
        u32::try_from(matches.len() + 1).map_err(|_| Invalid::new("too many routes"))?;
        let compiled = matches.iter().enumerate().map(|(position, route)| {
            Matcher::new(route).map_err(|invalid| invalid.at(format!("routes[{position}].match")))
        });
        let mut index = RouteIndex {
            matchers: compiled.collect::<Result<_, _>>()?,
            next: vec![END; matches.len()],
            keys: Keys::with_room_for(matches.len()),
            lengths: Vec::new(),
            has_exact: false,
            has_whole: false,
            rest: END,
        };
        let mut lengths = BTreeMap::new();
        // Backwards, so that each becomes the head of its chain.
        for (position, route) in matches.iter().enumerate().rev() {
            index.link(position, &route.path, &mut lengths);
        }
        index.lengths = lengths.into_values().collect();
        index.has_whole = index.has_exact || index.lengths.iter().any(|length| length.separated);
        Ok(index)
    }

    fn link(&mut self, position: usize, test: &PathTest, lengths: &mut BTreeMap<usize, Length>) {
        let head = match test {
            PathTest::Exact { value, ignore_case: false } => {
                self.has_exact = true;
                self.keys.chain(Kind::Exact.key(value))
            }
            PathTest::Prefix { value, ignore_case: false } => {
                // The empty prefix has no last byte, and fits whatever comes.
                Length::of(value, lengths).ends |= value.as_bytes().last().map_or(u128::MAX, |end| bit(*end));
                self.keys.chain(Kind::Prefix.key(value))
            }
            PathTest::Separated { value, ignore_case: false } => {
                Length::of(value, lengths).separated = true;
                self.keys.chain(Kind::Separated.key(value))
            }
            _ => &mut self.rest,
        };
        self.next[position] = std::mem::replace(head, position as u32);
    }

    /// The position of the first route that matches. Allocates nothing.
    pub fn find(&self, head: &RequestHead<'_>, random: &mut fastrand::Rng) -> Option<usize> {
        if self.matchers.len() <= WALKED {
            return self.matchers.iter().position(|matcher| matcher.is_match(head, random));
        }
        let (mut chains, mut count, mut best) = ([END; CHAINS], 0, END);
        self.chains_of(head, |first| match chains.get_mut(count) {
            _ if first == END => {}
            Some(free) => {
                *free = first;
                count += 1;
            }
            None => best = self.follow(first, best, head, random),
        });
        let chains = chains.get_mut(..count)?;
        loop {
            let Some(nearest) = chains.iter_mut().min().filter(|nearest| **nearest < best) else {
                return (best != END).then_some(best as usize);
            };
            let position = *nearest as usize;
            if self.matchers.get(position)?.is_match(head, random) {
                return Some(position);
            }
            *nearest = *self.next.get(position)?;
        }
    }

    /// The first condition of the route at a position that a request does not meet. `route` is what it was made of. A share of
    /// the requests is no condition here that could be met: for a route that was passed over although all else holds, it is why.
    pub fn unmet(&self, position: usize, route: &RouteMatch, head: &RequestHead<'_>) -> Option<Unmet> {
        self.matchers.get(position)?.unmet(route, head)
    }

    /// Calls `chain` with the heads of all chains that may have a route for this request.
    fn chains_of(&self, head: &RequestHead<'_>, mut chain: impl FnMut(u32)) {
        let text = head.path_and_query;
        let bytes = text.as_bytes();
        let end = if self.has_whole { head.path().len() } else { bytes.len() };
        let mut starts = Starts::of(text);
        for Length { length, ends, separated } in &self.lengths {
            if *length > bytes.len() {
                break;
            }
            let prefix = match length.checked_sub(1).and_then(|last| bytes.get(last)) {
                Some(last) => ends & bit(*last) != 0,
                None => *ends != 0,
            };
            let separated = *separated && (*length == end || *length < end && bytes.get(*length) == Some(&b'/'));
            if prefix || separated {
                let hash = starts.hash(*length);
                if prefix {
                    chain(self.keys.first(Kind::Prefix.of(hash)));
                }
                if separated {
                    chain(self.keys.first(Kind::Separated.of(hash)));
                }
            }
        }
        if self.has_exact {
            chain(self.keys.first(Kind::Exact.of(starts.hash(end))));
        }
        chain(self.rest);
    }

    /// The first route of one chain that matches, if it is before `best`.
    fn follow(&self, first: u32, best: u32, head: &RequestHead<'_>, random: &mut fastrand::Rng) -> u32 {
        let mut position = first;
        while position < best {
            let Some((matcher, next)) = self.matchers.get(position as usize).zip(self.next.get(position as usize))
            else {
                break;
            };
            if matcher.is_match(head, random) {
                return position;
            }
            position = *next;
        }
        best
    }
}

/// A bit for a byte. Bytes of URIs are ASCII; others share bits, which costs them a look-up.
fn bit(byte: u8) -> u128 {
    1 << (byte & 127)
}

/// What a key is compared with. One text may be a key of each kind.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Exact,
    Prefix,
    Separated,
}

impl Kind {
    fn key(self, text: &str) -> u64 {
        self.of(Starts::of(text).hash(text.len()))
    }

    fn of(self, hash: u64) -> u64 {
        hash ^ match self {
            Kind::Exact => 0,
            Kind::Prefix => 0x9e37_79b9_7f4a_7c15,
            Kind::Separated => 0xc2b2_ae3d_27d4_eb4f,
        }
    }
}

/// The heads of chains by the hash of their key: open addressing, at most two thirds full, eight bytes a slot, so
/// that ten thousand keys stay in the processor's second cache.
#[derive(Debug)]
struct Keys {
    slots: Vec<Slot>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The half of the hash that does not tell the slot. Keys of one tag in one place share their chain: whatever
    /// is in it is tested as a whole.
    tag: u32,
    first: u32,
}

impl Keys {
    fn with_room_for(count: usize) -> Self {
        let size = (count + count / 2 + 1).next_power_of_two();
        Keys { slots: vec![Slot { tag: 0, first: END }; size] }
    }

    /// The head of a key's chain, to be set.
    fn chain(&mut self, key: u64) -> &mut u32 {
        let slot = self.slot(key);
        let slot = &mut self.slots[slot];
        slot.tag = tag(key);
        &mut slot.first
    }

    /// The head of a key's chain.
    fn first(&self, key: u64) -> u32 {
        self.slots[self.slot(key)].first
    }

    /// The slot that has a key, or is free for it. There is always a free one.
    fn slot(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = key as usize & mask;
        while self.slots[at].first != END && self.slots[at].tag != tag(key) {
            at = (at + 1) & mask;
        }
        at
    }
}

fn tag(key: u64) -> u32 {
    (key >> 32) as u32
}

/// The hashes of a text's starts; of ascending lengths, each byte is read about once. They need no
/// secret: keys come from the configuration, and a request can neither add one nor make a chain longer.
struct Starts<'p> {
    bytes: &'p [u8],
    /// Of the blocks before `done`.
    state: u64,
    done: usize,
}

/// Bytes that are mixed in at once.
const BLOCK: usize = 8;
/// Any odd number without a pattern, as the others in here.
const SEED: u64 = 0x2d35_8dcc_aa6c_78a5;

impl<'p> Starts<'p> {
    fn of(text: &'p str) -> Self {
        Starts { bytes: text.as_bytes(), state: SEED, done: 0 }
    }

    /// The hash of the first `length` bytes.
    fn hash(&mut self, length: usize) -> u64 {
        if self.done > 0 && self.done >= length {
            (self.state, self.done) = (SEED, 0);
        }
        while self.done + BLOCK < length {
            self.state = mix(self.state ^ self.block(self.done), 0x8bb8_4b93_962e_acc9);
            self.done += BLOCK;
        }
        // The last block may overlap the one before it.
        let last = match length.checked_sub(BLOCK) {
            Some(start) => self.block(start),
            None => self.block(0) & !(u64::MAX << (8 * length)),
        };
        mix(self.state ^ last, 0x4b33_a62e_d433_d4a3 ^ length as u64)
    }

    /// Eight bytes, or what there is of them and zeros.
    fn block(&self, start: usize) -> u64 {
        let bytes = self.bytes.get(start..).unwrap_or_default();
        match bytes.first_chunk() {
            Some(block) => u64::from_le_bytes(*block),
            None => bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)),
        }
    }
}

/// Both halves of a product, folded.
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// One route's conditions, two to a cache line.
#[derive(Debug)]
struct Matcher {
    path: Path,
    more: Option<Box<Conditions>>,
}

/// A test on the path. The plain ones do not look for the query before they know the rest.
#[derive(Debug)]
enum Path {
    Exact(Box<str>),
    Prefix(Box<str>),
    Separated(Box<str>),
    Other(Box<PathTest>),
}

impl Path {
    fn of(test: &PathTest) -> Self {
        match test {
            PathTest::Prefix { value, ignore_case: false } => Path::Prefix(value.as_str().into()),
            // A path has no `?`, but the text that is compared may go on with one.
            PathTest::Exact { value, ignore_case: false } if !value.contains('?') => Path::Exact(value.as_str().into()),
            PathTest::Separated { value, ignore_case: false } if !value.contains('?') => {
                Path::Separated(value.as_str().into())
            }
            _ => Path::Other(Box::new(test.clone())),
        }
    }

    fn is_match(&self, head: &RequestHead<'_>) -> bool {
        let after = |start: &str| head.path_and_query.as_bytes().strip_prefix(start.as_bytes());
        match self {
            Path::Prefix(value) => after(value).is_some(),
            Path::Exact(value) => after(value).is_some_and(|rest| matches!(rest.first(), None | Some(b'?'))),
            Path::Separated(value) => after(value).is_some_and(|rest| matches!(rest.first(), None | Some(b'?' | b'/'))),
            Path::Other(test) => path_matches(test, head),
        }
    }
}

/// What a request must satisfy besides its path, with header names resolved.
#[derive(Debug)]
struct Conditions {
    headers: SmallVec<[(Field, HeaderTest); 1]>,
    query: Vec<QueryTest>,
    grpc: bool,
    fraction: Option<Fraction>,
}

impl Matcher {
    fn new(route: &RouteMatch) -> Result<Self, Invalid> {
        let headers = route
            .headers
            .iter()
            .enumerate()
            .map(|(position, test)| {
                let field = Field::of(test).map_err(|invalid| invalid.at(format!("headers[{position}]")))?;
                Ok((field, test.clone()))
            })
            .collect::<Result<SmallVec<_>, Invalid>>()?;
        let more = Conditions { headers, query: route.query.clone(), grpc: route.grpc, fraction: route.fraction };
        let any = more.headers.is_empty() && more.query.is_empty() && !more.grpc && more.fraction.is_none();
        Ok(Matcher { path: Path::of(&route.path), more: (!any).then(|| Box::new(more)) })
    }

    fn is_match(&self, head: &RequestHead<'_>, random: &mut fastrand::Rng) -> bool {
        self.path.is_match(head) && self.more.as_ref().is_none_or(|more| more.are_met(head, random))
    }

    /// In the order of `is_match`.
    #[cold]
    fn unmet(&self, route: &RouteMatch, head: &RequestHead<'_>) -> Option<Unmet> {
        if !self.path.is_match(head) {
            return Some(Unmet::of_path(&route.path, head));
        }
        let Conditions { headers, query, grpc, fraction } = &**self.more.as_ref()?;
        if *grpc && !head.is_grpc() {
            return Some(Unmet::of_grpc(head));
        }
        if let Some((field, test)) = headers.iter().find(|(field, test)| !header_matches(field, test, head)) {
            return Some(Unmet::of_header(field, test, head));
        }
        let test = query.iter().find(|test| !query_matches(test, head.query()));
        test.map(|test| Unmet::of_query(test, head)).or_else(|| fraction.map(Unmet::of_share))
    }
}

impl Conditions {
    fn are_met(&self, head: &RequestHead<'_>, random: &mut fastrand::Rng) -> bool {
        (!self.grpc || head.is_grpc())
            && self.headers.iter().all(|(field, test)| header_matches(field, test, head))
            && self.query.iter().all(|test| query_matches(test, head.query()))
            // Last: one draw a route that matches otherwise.
            && self.fraction.is_none_or(|fraction| fraction.contains(random.u32(0..1_000_000)))
    }
}
