//! Where in a resource the decoder is, and which set fields it passed without effect.

use std::collections::BTreeMap;
use std::ops::Range;

use super::shared::Shared;
use crate::error::Invalid;
use crate::xds::decode::Options;

/// How many ignored fields of one resource are named; the rest is counted.
const NAMED: usize = 64;

/// The decoder's place and findings.
pub(super) struct Notes<'a> {
    pub(super) options: &'a Options,
    /// What was decoded, and may be said again.
    pub(super) shared: Shared,
    path: Vec<Step>,
    ignored: Vec<String>,
    unnamed: usize,
    /// How many long lists there were.
    lists: usize,
    /// While an item of one is decoded: how long the path to it is, and what was ignored in it.
    item: Option<(usize, Vec<Box<str>>)>,
    noted: Noted,
}

/// What is ignored in items of long lists, by the list and the place in it: whoever keeps an item of a version in the next one has to
/// tell it there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Noted(BTreeMap<(usize, usize), Vec<Box<str>>>);

impl Noted {
    /// What is ignored in some items of a list, by their places.
    pub(super) fn of(&self, list: usize, places: &Range<usize>) -> impl Iterator<Item = (usize, &[Box<str>])> {
        let items = self.0.range((list, places.start)..(list, places.end));
        items.map(|((_, place), fields)| (*place, fields.as_slice()))
    }
}

enum Step {
    Field(&'static str),
    Item(&'static str, usize),
    Key(&'static str, String),
}

impl<'a> Notes<'a> {
    pub(super) fn new(options: &'a Options) -> Self {
        let (shared, path, ignored, noted) = (Shared::default(), Vec::new(), Vec::new(), Noted::default());
        Notes { options, shared, path, ignored, unnamed: 0, lists: 0, item: None, noted }
    }

    /// Decodes inside a field.
    pub(super) fn field<T>(
        &mut self,
        name: &'static str,
        decode: impl FnOnce(&mut Self) -> Result<T, Invalid>,
    ) -> Result<T, Invalid> {
        self.within(Step::Field(name), decode)
    }

    /// Decodes a message that must be there.
    pub(super) fn required<P, T>(
        &mut self,
        name: &'static str,
        value: Option<P>,
        decode: impl FnOnce(&mut Self, P) -> Result<T, Invalid>,
    ) -> Result<T, Invalid> {
        match value {
            Some(value) => self.field(name, |notes| decode(notes, value)),
            None => Err(Invalid::new("missing").at(name)),
        }
    }

    /// Decodes a message that may be there.
    pub(super) fn optional<P, T>(
        &mut self,
        name: &'static str,
        value: Option<P>,
        decode: impl FnOnce(&mut Self, P) -> Result<T, Invalid>,
    ) -> Result<Option<T>, Invalid> {
        value.map(|value| self.field(name, |notes| decode(notes, value))).transpose()
    }

    /// Decodes every item of a list.
    pub(super) fn each<P, T>(
        &mut self,
        name: &'static str,
        items: impl IntoIterator<Item = P>,
        mut decode: impl FnMut(&mut Self, P) -> Result<T, Invalid>,
    ) -> Result<Vec<T>, Invalid> {
        let items = items.into_iter().enumerate();
        items.map(|(index, item)| self.item(name, index, |notes| decode(notes, item))).collect()
    }

    /// Decodes one item of a list.
    pub(super) fn item<T>(
        &mut self,
        name: &'static str,
        index: usize,
        decode: impl FnOnce(&mut Self) -> Result<T, Invalid>,
    ) -> Result<T, Invalid> {
        self.within(Step::Item(name, index), decode)
    }

    /// The number of a long list: the next one.
    pub(super) fn long_list(&mut self) -> usize {
        self.lists += 1;
        self.lists - 1
    }

    /// Decodes one item of a long list, by the list's number and its own place.
    pub(super) fn long_item<T>(
        &mut self,
        name: &'static str,
        (list, index): (usize, usize),
        decode: impl FnOnce(&mut Self) -> Result<T, Invalid>,
    ) -> Result<T, Invalid> {
        self.item(name, index, |notes| {
            notes.item = Some((notes.path.len(), Vec::new()));
            let result = decode(notes);
            if let Some((_, fields)) = notes.item.take().filter(|(_, fields)| !fields.is_empty()) {
                notes.noted.0.insert((list, index), fields);
            }
            result
        })
    }

    /// Notes what is ignored in an item of a long list that is as it was.
    pub(super) fn kept_item(&mut self, name: &'static str, place: (usize, usize), fields: &[Box<str>]) {
        let noted: Result<(), Invalid> = self.long_item(name, place, |notes| {
            fields.iter().for_each(|field| notes.ignore(field));
            Ok(())
        });
        debug_assert!(noted.is_ok(), "nothing is decoded");
    }

    /// Decodes the value of a map.
    pub(super) fn entry<T>(
        &mut self,
        name: &'static str,
        key: &str,
        decode: impl FnOnce(&mut Self) -> Result<T, Invalid>,
    ) -> Result<T, Invalid> {
        self.within(Step::Key(name, key.to_owned()), decode)
    }

    fn within<T>(&mut self, step: Step, decode: impl FnOnce(&mut Self) -> Result<T, Invalid>) -> Result<T, Invalid> {
        self.path.push(step);
        let result = decode(self);
        match self.path.pop() {
            Some(step) => result.map_err(|invalid| invalid.at(step.text())),
            None => result,
        }
    }

    /// Notes that a field is set and has no effect.
    pub(super) fn ignore(&mut self, name: &str) {
        if let Some((depth, fields)) = &mut self.item {
            fields.push(text(self.path.get(*depth..).unwrap_or_default(), name).into());
        }
        if self.ignored.len() == NAMED {
            self.unnamed += 1;
            return;
        }
        self.ignored.push(text(&self.path, name));
    }

    /// How many fields without effect there were.
    pub(super) fn count(&self) -> usize {
        self.ignored.len() + self.unnamed
    }

    /// Notes that a field has no effect, if it is set. Its name may be an identifier of Rust's.
    pub(super) fn ignore_if_set<T: Default + PartialEq>(&mut self, name: &str, value: &T) {
        if *value != T::default() {
            self.ignore(name.trim_start_matches("r#"));
        }
    }

    /// The fields without effect, and those of them that are in items of long lists.
    pub(super) fn into_ignored(mut self) -> (Vec<String>, Noted) {
        if self.unnamed > 0 {
            self.ignored.push(format!("and {} more", self.unnamed));
        }
        (self.ignored, self.noted)
    }
}

/// A field, and the way to it.
fn text(path: &[Step], name: &str) -> String {
    let mut text: String = path.iter().map(|step| step.text() + ".").collect();
    text.push_str(name);
    text
}

impl Step {
    fn text(&self) -> String {
        match self {
            Step::Field(name) => (*name).to_owned(),
            Step::Item(name, index) => format!("{name}[{index}]"),
            Step::Key(name, key) => format!("{name}[{key:?}]"),
        }
    }
}

/// Notes each of these local variables, named like the field it came from, if it is set.
macro_rules! ignored {
    ($notes:expr; $($field:ident),+ $(,)?) => {
        $($notes.ignore_if_set(stringify!($field), &$field);)+
    };
}
pub(super) use ignored;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_field_has_its_path_and_many_are_counted() {
        let options = Options::default();
        let mut notes = Notes::new(&options);
        let (cors, tracing) = (Some(1), None::<u32>);
        let routes = notes.each("routes", 0..100, |notes, _| {
            notes.field("route", |notes| {
                ignored!(notes; cors, tracing);
                Ok(())
            })
        });
        assert_eq!(routes.unwrap().len(), 100);
        let (ignored, _) = notes.into_ignored();
        assert_eq!((ignored.len(), ignored[1].as_str()), (65, "routes[1].route.cors"));
        assert_eq!(ignored[64], "and 36 more");
    }

    #[test]
    fn what_is_ignored_in_an_item_is_told_again_where_the_item_is_then() {
        let options = Options::default();
        let cors = Some(1);
        let mut notes = Notes::new(&options);
        let list = notes.long_list();
        for index in 0..100 {
            let item = notes.long_item("routes", (list, index), |notes| {
                notes.field("route", |notes| {
                    ignored!(notes; cors);
                    Ok(())
                })
            });
            assert!(item.is_ok());
        }
        let noted = notes.into_ignored().1;
        let mut notes = Notes::new(&options);
        let list = notes.long_list();
        for (place, fields) in noted.of(0, &(98..200)) {
            notes.kept_item("routes", (list, place - 98), fields);
        }
        let (ignored, again) = notes.into_ignored();
        assert_eq!(ignored, ["routes[0].route.cors", "routes[1].route.cors"]);
        assert!(again.of(0, &(0..9)).eq(noted.of(0, &(0..2))));
    }

    #[test]
    fn an_error_has_the_path_of_its_field() {
        let options = Options::default();
        let mut notes = Notes::new(&options);
        let error = notes.each("routes", [1, 2], |notes, _| {
            notes.entry("typed_per_filter_config", "f", |_| Err::<(), _>(Invalid::new("no")))
        });
        assert_eq!(error.unwrap_err().field, "routes[0].typed_per_filter_config[\"f\"]");
    }
}
