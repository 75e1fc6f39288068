//! A resource that changed a little: items of its long lists whose bytes are as they were are not decoded again.

use std::collections::HashMap;
use std::ops::Range;

use prost::encoding::{DecodeContext, WireType, decode_key, skip_field};
use prost::{DecodeError, Message, decode_length_delimiter};

use super::common::parse;
use super::notes::{Noted, Notes};
use crate::error::Invalid;
use crate::list::{List, Run};
use crate::resources::Resource;

/// A version of a resource that was accepted.
#[derive(Clone, Copy, Debug)]
pub struct Before<'b> {
    /// Its bytes.
    pub bytes: &'b [u8],
    /// What they say.
    pub resource: &'b Resource,
    /// What was [noted](super::Decoded::noted) of it.
    pub noted: &'b Noted,
}

/// A message without one of its repeated fields, and what is in that.
pub(super) struct Parts<'m> {
    pub(super) rest: Vec<u8>,
    pub(super) items: Vec<&'m [u8]>,
}

/// Takes a message apart, which is not decoded by that: of a long list, each item takes kilobytes once it is, so that they are
/// decoded one by one.
///
/// # Errors
/// It is no Protobuf.
pub(super) fn take_apart(message: &[u8], field: u32) -> Result<Parts<'_>, Invalid> {
    let malformed = |error: DecodeError| Invalid::new(format!("malformed Protobuf: {error}"));
    let (mut rest, mut items, mut left) = (Vec::new(), Vec::new(), message);
    while !left.is_empty() {
        let start = left;
        let (tag, wire_type) = decode_key(&mut left).map_err(malformed)?;
        if tag == field && wire_type == WireType::LengthDelimited {
            let length = decode_length_delimiter(&mut left).map_err(malformed)?;
            let item = left.split_at_checked(length);
            let (item, next) = item.ok_or_else(|| Invalid::new("malformed Protobuf: buffer underflow"))?;
            items.push(item);
            left = next;
        } else {
            skip_field(wire_type, tag, &mut left, DecodeContext::default()).map_err(malformed)?;
            rest.extend_from_slice(start.get(..start.len() - left.len()).unwrap_or_default());
        }
    }
    Ok(Parts { rest, items })
}

/// The items of a list: messages `P` that become `T`.
pub(super) enum Items<'b, P, T> {
    /// Some may not be made yet: of a long list, all of them at once take more than what becomes of them.
    Decoded(Box<dyn ExactSizeIterator<Item = P> + 'b>),
    Encoded(Vec<&'b [u8]>),
    /// Some are those of a list that is known.
    After(Known<'b, T>, Vec<Run<&'b [u8]>>),
}

/// A list of the version before.
pub(super) struct Known<'b, T> {
    pub(super) list: &'b List<T>,
    /// Which of its long lists that is.
    pub(super) number: usize,
    pub(super) noted: &'b Noted,
}

impl<'b, P: Message + Default, T: Clone> Items<'b, P, T> {
    /// The items of these bytes, where `known` are those of the list before.
    pub(super) fn after(bytes: Vec<&'b [u8]>, known: Option<(&[&'b [u8]], Known<'b, T>)>) -> Self {
        match known.filter(|(bytes, known)| bytes.len() == known.list.len()) {
            Some((before, known)) => Items::After(known, runs(&bytes, before)),
            None => Items::Encoded(bytes),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Items::Decoded(items) => matches!(items.len(), 0),
            Items::Encoded(items) => items.is_empty(),
            Items::After(_, runs) => runs.is_empty(),
        }
    }

    /// The items of the list before that are not among these.
    pub(super) fn gone(&self) -> Vec<&'b T> {
        let Items::After(known, runs) = self else { return Vec::new() };
        let kept = runs.iter().filter_map(|run| match run {
            Run::Kept(range) => Some((range.start, range.end)),
            Run::New(_) => None,
        });
        let mut kept: Vec<(usize, usize)> = kept.collect();
        kept.sort_unstable();
        let starts = kept.iter().map(|(start, _)| *start).chain([known.list.len()]);
        let ends = [0].into_iter().chain(kept.iter().map(|(_, end)| *end));
        ends.zip(starts).flat_map(|(end, start)| end..start).filter_map(|at| known.list.get(at)).collect()
    }

    /// Decodes those that are new.
    pub(super) fn decode(
        self,
        notes: &mut Notes<'_>,
        name: &'static str,
        mut decode: impl FnMut(&mut Notes<'_>, P) -> Result<T, Invalid>,
    ) -> Result<List<T>, Invalid> {
        let list = notes.long_list();
        let (known, runs) = match self {
            Items::Decoded(items) => {
                let items = items.enumerate();
                return items
                    .map(|(at, item)| notes.long_item(name, (list, at), |notes| decode(notes, item)))
                    .collect();
            }
            Items::Encoded(items) => {
                let items = items.into_iter().enumerate();
                return items
                    .map(|(at, bytes)| notes.long_item(name, (list, at), |notes| decode(notes, parse(bytes)?)))
                    .collect();
            }
            Items::After(known, runs) => (known, runs),
        };
        let mut position = 0;
        let runs = runs.into_iter().map(|run| match run {
            Run::Kept(range) => {
                for (place, fields) in known.noted.of(known.number, &range) {
                    notes.kept_item(name, (list, position + place - range.start), fields);
                }
                position += range.len();
                Ok(Run::Kept(range))
            }
            Run::New(items) => {
                let start = position;
                position += items.len();
                let items = items
                    .into_iter()
                    .enumerate()
                    .map(|(at, bytes)| notes.long_item(name, (list, start + at), |notes| decode(notes, parse(bytes)?)));
                items.collect::<Result<_, _>>().map(Run::New)
            }
        });
        Ok(known.list.changed(runs.collect::<Result<_, _>>()?))
    }
}

/// What of some items is among those that are known, each of which is taken once.
fn runs<'b>(items: &[&'b [u8]], known: &[&'b [u8]]) -> Vec<Run<&'b [u8]>> {
    let start = items.iter().zip(known).take_while(|(item, known)| item == known).count();
    let (items, rest) = (items.get(start..).unwrap_or_default(), known.get(start..).unwrap_or_default());
    let end = items.iter().rev().zip(rest.iter().rev()).take_while(|(item, known)| item == known).count();
    let middle = start..known.len() - end;
    let places = middle.clone().zip(rest).map(|(place, item)| (*item, place));
    let mut places: HashMap<&[u8], usize, foldhash::fast::RandomState> = places.collect();
    let mut runs = Vec::new();
    keep(&mut runs, 0..start);
    for item in items.get(..items.len() - end).unwrap_or_default() {
        match (places.remove(item), runs.last_mut()) {
            (Some(place), _) => keep(&mut runs, place..place + 1),
            (None, Some(Run::New(new))) => new.push(*item),
            (None, _) => runs.push(Run::New(vec![*item])),
        }
    }
    keep(&mut runs, middle.end..known.len());
    runs
}

fn keep<T>(runs: &mut Vec<Run<T>>, range: Range<usize>) {
    match runs.last_mut() {
        _ if range.is_empty() => {}
        Some(Run::Kept(last)) if last.end == range.start => last.end = range.end,
        _ => runs.push(Run::Kept(range)),
    }
}
