//! Envoy's commands in texts (`%REQ(x-user?x-id):10%`): where each is, and what its parts are. What one stands for is for those
//! to say who use the text: headers that configuration adds, and lines of access logs.

use crate::error::Invalid;

/// A part of a text.
pub(super) enum Piece<'t> {
    /// As it is; `%%` is `%` here.
    Text(Vec<u8>),
    Command(Command<'t>),
}

/// `%NAME%`, `%NAME(ARGUMENTS)%`, either with `:LENGTH`.
pub(super) struct Command<'t> {
    pub(super) name: &'t str,
    pub(super) arguments: Option<&'t str>,
    pub(super) length: Option<usize>,
}

/// The parts of a text, in order. No two texts follow each other.
pub(super) fn pieces(text: &[u8]) -> Result<Vec<Piece<'_>>, Invalid> {
    let (mut pieces, mut plain, mut rest) = (Vec::new(), Vec::new(), text);
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            plain.push(*byte);
        } else if let Some(after) = rest.strip_prefix(b"%") {
            plain.push(b'%');
            rest = after;
        } else {
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            let (command, after) = command(rest)?;
            pieces.push(Piece::Command(command));
            rest = after;
        }
    }
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(pieces)
}

/// A command and what follows it, from behind its first `%`.
fn command(text: &[u8]) -> Result<(Command<'_>, &[u8]), Invalid> {
    let lone = || Invalid::new("not a command, but a lone %: write %% for a percent sign, or %COMMAND%");
    let is_of_name = |byte: &&u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || **byte == b'_';
    let (name, mut rest) = text.split_at_checked(text.iter().take_while(is_of_name).count()).ok_or_else(lone)?;
    let name = std::str::from_utf8(name).map_err(|_| lone())?;
    if !name.starts_with(|first: char| first.is_ascii_uppercase()) {
        return Err(lone());
    }
    let unended = || Invalid::new(format!("%{name} has no end, which is another %"));
    let mut arguments = None;
    if let Some(after) = rest.strip_prefix(b"(") {
        let end = after.iter().position(|byte| *byte == b')').ok_or_else(unended)?;
        let (inside, after) = after.split_at_checked(end).ok_or_else(unended)?;
        let inside = std::str::from_utf8(inside);
        arguments = Some(inside.map_err(|_| Invalid::new(format!("%{name}: its arguments are no text")))?);
        rest = after.strip_prefix(b")").ok_or_else(unended)?;
    }
    let not_a_length = || Invalid::new(format!("%{name}: what follows is not `:LENGTH`"));
    let mut length = None;
    if let Some(after) = rest.strip_prefix(b":") {
        let (number, after) = after
            .split_at_checked(after.iter().take_while(|byte| byte.is_ascii_digit()).count())
            .ok_or_else(unended)?;
        let number = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok());
        length = Some(number.ok_or_else(not_a_length)?);
        rest = after;
    }
    match rest.split_first() {
        Some((b'%', rest)) => Ok((Command { name, arguments, length }, rest)),
        Some(_) if arguments.is_some() || length.is_some() => Err(not_a_length()),
        Some(_) | None => Err(unended()),
    }
}
