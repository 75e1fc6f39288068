//! Changes to header maps, as routes and listeners ask for them.

use http::HeaderMap;
use mesh_core::model::HeaderChange;

/// Applies header changes in their order.
pub(crate) fn apply(changes: &[HeaderChange], headers: &mut HeaderMap) {
    for change in changes {
        match change {
            HeaderChange::Append(name, value) => _ = headers.append(name.clone(), value.clone()),
            HeaderChange::Set(name, value) => _ = headers.insert(name.clone(), value.clone()),
            HeaderChange::AddIfAbsent(name, value) => {
                headers.entry(name).or_insert_with(|| value.clone());
            }
            HeaderChange::ReplaceIfPresent(name, value) => {
                if headers.contains_key(name) {
                    headers.insert(name.clone(), value.clone());
                }
            }
            HeaderChange::Remove(name) => _ = headers.remove(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn header_changes_apply_in_order() {
        let (name, value) = (http::header::ACCEPT, HeaderValue::from_static("1"));
        let two = HeaderValue::from_static("2");
        let mut headers = HeaderMap::new();
        apply(&[HeaderChange::ReplaceIfPresent(name.clone(), value.clone())], &mut headers);
        assert!(headers.is_empty());
        apply(&[HeaderChange::AddIfAbsent(name.clone(), value.clone())], &mut headers);
        apply(&[HeaderChange::AddIfAbsent(name.clone(), two.clone())], &mut headers);
        assert_eq!(headers[&name], "1");
        apply(&[HeaderChange::Append(name.clone(), two.clone())], &mut headers);
        assert_eq!(headers.get_all(&name).iter().count(), 2);
        apply(&[HeaderChange::Set(name.clone(), two)], &mut headers);
        assert_eq!(headers.get_all(&name).iter().count(), 1);
        apply(&[HeaderChange::Remove(name)], &mut headers);
        assert!(headers.is_empty());
    }
}
