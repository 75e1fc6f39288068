//! Text from outside, where people read it: in terminals and in logs.

/// Whether a character is none that is seen, but changes what is seen around it: control characters, and ends of lines and
/// directions of writing, of which Unicode has others.
///
/// ```
/// use mesh_core::printable::is_unseen;
///
/// assert!(is_unseen('\u{1b}') && is_unseen('\u{202e}') && !is_unseen('\u{fc}'));
/// ```
pub fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text with a blank in the place of each character that is [unseen](is_unseen).
///
/// ```
/// assert_eq!(mesh_core::printable::printable("web\u{1b}[2J\u{202e}x"), "web [2J x");
/// ```
pub fn printable(text: &str) -> String {
    text.replace(is_unseen, " ")
}
