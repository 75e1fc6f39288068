use proptest::prelude::*;

use super::*;

const MODES: [PathNormalization; 4] = [
    PathNormalization::NONE,
    PathNormalization::BASE,
    PathNormalization::MERGE_SLASHES,
    PathNormalization::DECODE_AND_MERGE_SLASHES,
];

fn canonical(mode: PathNormalization, path: &str) -> Result<String, String> {
    mode.canonical(path, false).map(Cow::into_owned).map_err(|error| error.to_string())
}

/// Path, and what NONE, BASE, MERGE_SLASHES and DECODE_AND_MERGE_SLASHES make of it: what Istio's meshes do. `=` is the path
/// itself, and `^` what the mode before made of it.
const TABLE: [(&str, [&str; 4]); 36] = [
    ("/", ["=", "^", "^", "^"]),
    ("/shop", ["=", "^", "^", "^"]),
    ("/shop/", ["=", "^", "^", "^"]),
    ("/shop//", ["=", "^", "/shop/", "^"]),
    ("//shop", ["=", "^", "/shop", "^"]),
    ("/shop/../admin", ["=", "/admin", "^", "^"]),
    ("/shop/./admin", ["=", "/shop/admin", "^", "^"]),
    ("/shop/..", ["=", "/", "^", "^"]),
    ("/shop/.", ["=", "/shop/", "^", "^"]),
    ("/../../admin", ["=", "/admin", "^", "^"]),
    ("/shop//../admin", ["=", "/shop/admin", "^", "^"]),
    ("/shop//../../admin", ["=", "/admin", "^", "^"]),
    ("/shop//..", ["=", "/shop/", "^", "^"]),
    ("/shop/%2e./admin", ["=", "/admin", "^", "^"]),
    ("/shop/.%2E/admin", ["=", "/admin", "^", "^"]),
    ("/shop/%2E%2e", ["=", "/", "^", "^"]),
    ("/x%30..//y", ["=", "/x0..//y", "/x0../y", "^"]),
    ("/%7euser%2dname%5Fx", ["=", "/~user-name_x", "^", "^"]),
    ("/shop\\admin", ["=", "/shop/admin", "^", "^"]),
    ("\\shop", ["=", "^", "^", "^"]),
    ("/shop/\\/\\admin", ["=", "/shop////admin", "/shop/admin", "^"]),
    ("/shop\\..\\admin", ["=", "/admin", "^", "^"]),
    ("/shop/%2f", ["=", "^", "^", "/shop/"]),
    ("/shop%2F/", ["=", "^", "^", "/shop/"]),
    ("/%2Fshop%5cadmin%5Cx", ["=", "^", "^", "/shop/admin/x"]),
    ("/%5Cshop%2f%2e%2e%2fadmin%5c\\x", ["=", "/%5Cshop%2f..%2fadmin%5c/x", "^", "/admin/x"]),
    ("/%c0%2e%c0%2e/admin", ["=", "/%c0.%c0./admin", "^", "^"]),
    ("/%c0%ae%c0%ae/admin", ["=", "^", "^", "^"]),
    ("/%c0%2fadmin", ["=", "^", "^", "/%c0/admin"]),
    ("/%252e%252e%252fadmin", ["=", "^", "^", "^"]),
    ("/.../admin", ["=", "^", "^", "^"]),
    ("/..;/admin", ["=", "^", "^", "^"]),
    ("/admin;a=b/x,c=d", ["=", "^", "^", "^"]),
    ("/Admin%20x%3B%zz%", ["=", "^", "^", "^"]),
    ("/ü/%C3%BC/{x}/\"", ["=", "^", "^", "^"]),
    ("*", ["=", "^", "^", "^"]),
];

/// Hazard A2.
#[test]
fn a2_each_mode_makes_of_a_path_what_istio_does() {
    for (path, expected) in TABLE {
        let mut before = path;
        for (mode, expected) in MODES.into_iter().zip(expected) {
            before = match expected {
                "=" => path,
                "^" => before,
                expected => expected,
            };
            assert_eq!(canonical(mode, path).as_deref(), Ok(before), "{mode:?} {path}");
        }
    }
}

/// Hazards A2 and A8: of all escapes, those of letters, digits and `-._~` are decoded, and those of slashes where that is
/// asked for.
#[test]
fn a2_each_escape_is_decoded_or_kept() {
    for byte in 1..=255u8 {
        for path in [format!("/admin%{byte:02x}"), format!("/admin%{byte:02X}")] {
            for mode in MODES {
                let is_slash = matches!(byte, b'/' | b'\\');
                let expected = match byte {
                    _ if is_slash && mode.escaped_slashes == EscapedSlashes::Decode => "/admin/".to_owned(),
                    b'-' | b'.' | b'_' | b'~' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' if mode.resolve => {
                        format!("/admin{}", char::from(byte))
                    }
                    _ => path.clone(),
                };
                assert_eq!(canonical(mode, &path), Ok(expected), "{mode:?} {path}");
            }
        }
    }
}

#[test]
fn a8_what_could_become_something_else_later_is_refused() {
    for mode in MODES {
        for path in ["/a%00b", "/%00", "/a/%00", "/a//..%00"] {
            assert!(canonical(mode, path).unwrap_err().contains("%00"), "{mode:?} {path}");
        }
        // Decoded once, this would be an escape; and then what that is.
        for path in ["/%2%65%2%65/admin", "/%%32e", "/%%32%65", "/%2%66admin", "/%%30%30"] {
            assert_eq!(canonical(mode, path).is_err(), mode.resolve, "{mode:?} {path}");
        }
    }
}

#[test]
fn a1_escaped_slashes_are_refused_where_that_is_asked_for() {
    let strict = PathNormalization { escaped_slashes: EscapedSlashes::Reject, ..PathNormalization::MERGE_SLASHES };
    for path in ["/%2Fadmin", "/%2fadmin", "/a%5c..", "/a%5C"] {
        assert!(canonical(strict, path).unwrap_err().contains("escaped slash"), "{path}");
    }
    assert_eq!(canonical(strict, "//admin%20"), Ok("/admin%20".to_owned()));
}

#[test]
fn a26_dot_segments_with_parameters_are_refused_where_paths_are_guarded() {
    for path in
        ["/u/..;x=y/admin", "/u/..;/admin", "/.;/x", "/u/%2e%2E;/admin", "/u/.%2e%3bx/admin", "/u\\..;\\admin", "/..;"]
    {
        for mode in MODES {
            let refused = mode.canonical(path, true).is_err();
            assert_eq!(refused, mode.resolve, "{mode:?} {path}");
            assert!(mode.canonical(path, false).is_ok(), "{mode:?} {path}");
        }
    }
    for path in ["/a;x=..;/b", "/...;/a", "/a..;/b", "/;/a"] {
        assert_eq!(PathNormalization::BASE.canonical(path, true).unwrap(), path);
    }
}

#[test]
fn what_is_canonical_is_not_copied() {
    for path in ["/", "/shop.Reviews/List", "/a/b.c/d-e_f~g", "/a%20b", "/a%2Fb", "//a", "/100%", "/a;b=c", "/%C3%BC"] {
        assert!(matches!(PathNormalization::BASE.canonical(path, true), Ok(Cow::Borrowed(_))), "{path}");
    }
    // And most of them are seen to be at the first look.
    for path in ["/", "/shop.Reviews/List", "/a/b.c/d-e_f~g/0123456789", "//a", "/a;b=c", "/ü.x/"] {
        assert!(PathNormalization::BASE.is_plain(path.as_bytes()), "{path}");
    }
    assert!(!PathNormalization::MERGE_SLASHES.is_plain(b"//a"));
}

/// The same in small steps, each of them obvious.
fn model(mode: PathNormalization, path: &str) -> String {
    fn replace(text: &str, from: &[String], to: &str) -> String {
        from.iter().fold(text.to_owned(), |text, from| text.replace(from, to))
    }
    let escapes = |byte: u8| {
        let digits = |high: char, low: char| format!("%{high}{low}");
        let cases = |digit: u8| {
            let lower = char::from_digit(u32::from(digit), 16).unwrap();
            [lower, lower.to_ascii_uppercase()]
        };
        let all = cases(byte >> 4).into_iter().flat_map(|high| cases(byte & 15).map(|low| digits(high, low)));
        all.collect::<Vec<_>>()
    };
    if !path.starts_with('/') {
        return path.to_owned();
    }
    let mut text = path.to_owned();
    if mode.escaped_slashes == EscapedSlashes::Decode {
        text = replace(&replace(&text, &escapes(b'/'), "/"), &escapes(b'\\'), "\\");
    }
    if mode.resolve {
        for byte in (0..128u8).filter(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(byte)) {
            text = replace(&text, &escapes(byte), &char::from(byte).to_string());
        }
        text = text.replace('\\', "/");
        while let Some(at) = text.find("/./") {
            text.replace_range(at..at + 2, "");
        }
        while let Some(at) = text.find("/../") {
            let from = text[..at].rfind('/').unwrap_or(at);
            text.replace_range(from..at + 3, "");
        }
        if text.ends_with("/.") {
            text.truncate(text.len() - 1);
        }
        if text.ends_with("/..") {
            let at = text.len() - 3;
            let from = text[..at].rfind('/').unwrap_or(at);
            text.replace_range(from.., "/");
        }
    }
    while mode.merge_slashes && text.contains("//") {
        text = text.replace("//", "/");
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn a_path_is_what_the_model_makes_of_it_and_stays_so(
        pieces in prop::collection::vec(
            prop::sample::select(vec![
                "/", "/", ".", "..", "a", "\\", "%2e", "%2F", "%5c", "%", "2", "%61", "%41", "%25", "%zz", "ü", ";", "/.", "abcdefg",
            ]),
            0..16,
        ),
    ) {
        let path = format!("/{}", pieces.concat());
        for mode in MODES {
            // What is refused has no canonical form.
            let Ok(canonical) = mode.canonical(&path, false) else { continue };
            prop_assert_eq!(&*canonical, model(mode, &path), "{:?} {}", mode, path);
            let again = mode.canonical(&canonical, false);
            prop_assert!(matches!(&again, Ok(Cow::Borrowed(same)) if *same == canonical), "{:?} {} {:?}", mode, path, again);
            prop_assert_eq!(matches!(canonical, Cow::Borrowed(_)), canonical == path, "{:?} {}", mode, path);
        }
    }
}
