//! Where in a resource the decoder is, and which set fields it passed without effect.

use crate::error::Invalid;
use crate::xds::decode::Options;

/// How many ignored fields of one resource are named; the rest is counted.
const NAMED: usize = 64;

/// The decoder's place and findings.
pub(super) struct Notes<'a> {
    pub(super) options: &'a Options,
    path: Vec<Step>,
    ignored: Vec<String>,
    unnamed: usize,
}

enum Step {
    Field(&'static str),
    Item(&'static str, usize),
    Key(&'static str, String),
}

impl<'a> Notes<'a> {
    pub(super) fn new(options: &'a Options) -> Self {
        Notes { options, path: Vec::new(), ignored: Vec::new(), unnamed: 0 }
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
        if self.ignored.len() == NAMED {
            self.unnamed += 1;
            return;
        }
        let mut path: String = self.path.iter().map(|step| step.text() + ".").collect();
        path.push_str(name);
        self.ignored.push(path);
    }

    /// Notes that a field has no effect, if it is set.
    pub(super) fn ignore_if_set<T: Default + PartialEq>(&mut self, name: &str, value: &T) {
        if *value != T::default() {
            self.ignore(name);
        }
    }

    pub(super) fn into_ignored(mut self) -> Vec<String> {
        if self.unnamed > 0 {
            self.ignored.push(format!("and {} more", self.unnamed));
        }
        self.ignored
    }
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
        $($notes.ignore_if_set(stringify!($field).trim_start_matches("r#"), &$field);)+
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
        let ignored = notes.into_ignored();
        assert_eq!((ignored.len(), ignored[1].as_str()), (65, "routes[1].route.cors"));
        assert_eq!(ignored[64], "and 36 more");
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
