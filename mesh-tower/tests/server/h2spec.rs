//! The cases of h2spec for servers, by its own numbers: frames that HTTP/2 (RFC 9113) and HPACK (RFC 7541) forbid, and such as have to
//! be borne. What floods are worth is in `floods.rs`.

use crate::server_support::frames::{END_HEADERS, END_STREAM, GET, PREFACE, ask, field, frame, frames, start};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 8;
const PRIORITIZED: u8 = 0x20;

const PROTOCOL: u8 = 1;
const FLOW_CONTROL: u8 = 3;
const STREAM_CLOSED: u8 = 5;
const FRAME_SIZE: u8 = 6;
const COMPRESSION: u8 = 9;

/// The stream of a request behind each case, and how an answer of 400 begins: with a field of the static table.
const LAST: u32 = 99;
const STATUS_400: u8 = 0x8c;

/// What becomes of the connection, or of its first stream. An error that has a code of its own may be told as PROTOCOL_ERROR, or by the
/// end of the connection, as in h2spec.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// It is borne: the request is answered, and so is the one behind it.
    Answered,
    /// The connection ends with one of these, and the request behind it is never answered.
    Ends(&'static [u8]),
    /// The stream is reset with one of these, or answered with 400; or the connection ends.
    Resets(&'static [u8]),
}
use Outcome::{Answered, Ends, Resets};

/// A request that is whole.
fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, GET)
}

/// One with these fields, and nothing behind them.
fn with(fields: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, fields)
}

/// One whose body is yet to come.
fn open() -> Vec<u8> {
    frame(HEADERS, END_HEADERS, 1, GET)
}

fn behind_get(fields: &[u8]) -> Vec<u8> {
    with(&[GET, fields].concat())
}

/// A value of the settings.
fn setting(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

fn increment(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

fn all(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.concat()
}

/// Of frames alone: sections 4 to 6 of RFC 9113, whose numbers h2spec has from RFC 7540.
fn of_frames() -> Vec<(&'static str, Vec<u8>, Outcome)> {
    let begun = || frame(HEADERS, END_STREAM, 1, GET);
    let done = || frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]);
    let body = |flags| frame(DATA, flags, 1, b"body");
    let rest = |stream, flags| frame(CONTINUATION, flags, stream, &field(b"a", b"1"));
    vec![
        ("4.1/1", all(&[frame(0xff, 0, 0, &[0; 8]), get(1)]), Answered),
        ("4.1/2", all(&[frame(PING, 0xfe, 0, &[0; 8]), get(1)]), Answered),
        ("4.1/3", all(&[frame(PING, 0, 1 << 31, &[0; 8]), get(1)]), Answered),
        ("4.2/1", all(&[open(), frame(DATA, END_STREAM, 1, &[0; 1 << 14])]), Answered),
        ("4.2/2", all(&[open(), frame(DATA, END_STREAM, 1, &[0; (1 << 14) + 1])]), Resets(&[FRAME_SIZE])),
        ("4.2/3", with(&[0; (1 << 14) + 1]), Ends(&[FRAME_SIZE])),
        ("4.3/1", with(b"\x40"), Ends(&[COMPRESSION])),
        ("4.3/2", all(&[begun(), frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1])]), Ends(&[PROTOCOL])),
        ("4.3/3", all(&[begun(), get(3)]), Ends(&[PROTOCOL])),
        ("5.1/1", body(END_STREAM), Ends(&[PROTOCOL])),
        ("5.1/2", done(), Ends(&[PROTOCOL])),
        ("5.1/3", increment(1, 100), Ends(&[PROTOCOL])),
        ("5.1/4", rest(1, END_HEADERS), Ends(&[PROTOCOL])),
        ("5.1/5", all(&[get(1), body(END_STREAM)]), Resets(&[STREAM_CLOSED])),
        ("5.1/6", all(&[get(1), get(1)]), Resets(&[STREAM_CLOSED, PROTOCOL])),
        ("5.1/7", all(&[get(1), rest(1, END_HEADERS)]), Ends(&[STREAM_CLOSED, PROTOCOL])),
        ("5.1/8", all(&[open(), done(), body(END_STREAM)]), Resets(&[STREAM_CLOSED, PROTOCOL])),
        ("5.1/9", all(&[open(), done(), get(1)]), Resets(&[STREAM_CLOSED, PROTOCOL])),
        ("5.1/10", all(&[open(), done(), rest(1, END_HEADERS)]), Ends(&[STREAM_CLOSED, PROTOCOL])),
        ("5.1.1/1", get(2), Ends(&[PROTOCOL])),
        ("5.1.1/2", all(&[get(5), get(3)]), Ends(&[PROTOCOL, STREAM_CLOSED])),
        (
            "5.3.1/1",
            frame(HEADERS, END_STREAM | END_HEADERS | PRIORITIZED, 1, &[&[0, 0, 0, 1, 255], GET].concat()),
            Resets(&[PROTOCOL]),
        ),
        ("5.4.1/1", all(&[frame(PING, 0, 0, &[0; 6]), get(1)]), Ends(&[FRAME_SIZE])),
        ("5.5/1", all(&[frame(0x16, 0, 1, &[0; 8]), get(1)]), Answered),
        ("5.5/2", all(&[begun(), frame(0x16, 0, 1, &[0; 8])]), Ends(&[PROTOCOL])),
        ("6.1/1", all(&[open(), frame(DATA, END_STREAM, 0, b"body")]), Ends(&[PROTOCOL])),
        ("6.1/3", all(&[open(), frame(DATA, END_STREAM | PADDED, 1, b"\x06body")]), Ends(&[PROTOCOL])),
        ("6.2/3", frame(HEADERS, END_STREAM | END_HEADERS, 0, GET), Ends(&[PROTOCOL])),
        ("6.2/4", frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, &[&[100], GET].concat()), Ends(&[PROTOCOL])),
        ("6.3/1", frame(PRIORITY, 0, 0, &[0, 0, 0, 3, 1]), Ends(&[PROTOCOL])),
        ("6.3/2", all(&[open(), frame(PRIORITY, 0, 1, &[0, 0, 0, 1])]), Resets(&[FRAME_SIZE])),
        ("6.4/1", frame(RST_STREAM, 0, 0, &[0, 0, 0, 8]), Ends(&[PROTOCOL])),
        ("6.4/3", all(&[open(), frame(RST_STREAM, 0, 1, &[0, 0, 8])]), Ends(&[FRAME_SIZE])),
        ("6.5/1", frame(SETTINGS, 1, 0, &[0]), Ends(&[FRAME_SIZE])),
        ("6.5/2", frame(SETTINGS, 0, 1, &[0, 3, 0, 0, 0, 100]), Ends(&[PROTOCOL])),
        ("6.5/3", frame(SETTINGS, 0, 0, &[0, 3, 0]), Ends(&[FRAME_SIZE])),
        ("6.5.2/1", setting(2, 2), Ends(&[PROTOCOL])),
        ("6.5.2/2", setting(4, 1 << 31), Ends(&[FLOW_CONTROL])),
        ("6.5.2/3", setting(5, (1 << 14) - 1), Ends(&[PROTOCOL])),
        ("6.5.2/4", setting(5, 1 << 24), Ends(&[PROTOCOL])),
        ("6.5.2/5", all(&[setting(0xff, 1), get(1)]), Answered),
        ("6.5.3/1", all(&[setting(4, 100), setting(4, 1), get(1), increment(1, 100)]), Answered),
        ("6.7/2", all(&[frame(PING, 1, 0, b"unasked "), get(1)]), Answered),
        ("6.7/3", frame(PING, 0, 1, &[0; 8]), Ends(&[PROTOCOL])),
        ("6.7/4", frame(PING, 0, 0, &[0; 6]), Ends(&[FRAME_SIZE])),
        ("6.8/1", frame(GOAWAY, 0, 1, &[0; 8]), Ends(&[PROTOCOL])),
        ("6.9/1", increment(0, 0), Ends(&[PROTOCOL])),
        ("6.9/2", all(&[open(), increment(1, 0)]), Resets(&[PROTOCOL])),
        ("6.9/3", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1]), Ends(&[FRAME_SIZE])),
        (
            "6.9.1/2",
            all(&[increment(0, i32::MAX.cast_unsigned()), increment(0, i32::MAX.cast_unsigned())]),
            Ends(&[FLOW_CONTROL]),
        ),
        (
            "6.9.1/3",
            all(&[open(), increment(1, i32::MAX.cast_unsigned()), increment(1, i32::MAX.cast_unsigned())]),
            Resets(&[FLOW_CONTROL]),
        ),
        ("6.9.2/2", all(&[setting(4, 3), get(1), setting(4, 2), increment(1, 100)]), Answered),
        (
            "6.9.2/3",
            all(&[open(), increment(1, i32::MAX.cast_unsigned() - 65_535), setting(4, 65_536)]),
            Ends(&[FLOW_CONTROL]),
        ),
        ("6.10/1", all(&[begun(), rest(1, 0), rest(1, END_HEADERS)]), Answered),
        ("6.10/2", all(&[begun(), rest(1, 0), body(0)]), Ends(&[PROTOCOL])),
        ("6.10/3", all(&[begun(), rest(0, END_HEADERS)]), Ends(&[PROTOCOL])),
        ("6.10/4", all(&[get(1), rest(1, END_HEADERS)]), Ends(&[PROTOCOL, STREAM_CLOSED])),
        ("6.10/5", all(&[begun(), rest(1, END_HEADERS), rest(1, END_HEADERS)]), Ends(&[PROTOCOL, STREAM_CLOSED])),
        ("6.10/6", all(&[open(), body(0), rest(1, END_HEADERS)]), Ends(&[PROTOCOL])),
        (
            "7/2",
            all(&[frame(HEADERS, END_HEADERS, 3, GET), frame(RST_STREAM, 0, 3, &[0, 0, 0, 0xff]), get(5)]),
            Answered,
        ),
        ("8.2/1", frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2], GET].concat()), Ends(&[PROTOCOL])),
    ]
}

/// Of what requests are made of: section 8, and HPACK.
fn of_fields() -> Vec<(&'static str, Vec<u8>, Outcome)> {
    const METHOD: &[u8] = b"\x82";
    const SCHEME: &[u8] = b"\x86";
    const PATH: &[u8] = b"\x84";
    let refused = Resets(&[PROTOCOL]);
    let made = |parts: &[&[u8]]| with(&parts.concat());
    let trailers = |flags| frame(HEADERS, flags | END_HEADERS, 1, &field(b"a", b"1"));
    vec![
        ("8.1/1", all(&[open(), trailers(0)]), refused),
        ("8.1/2", all(&[open(), trailers(END_STREAM)]), Answered),
        ("8.1.2/1", behind_get(&field(b"X-Upper", b"1")), refused),
        ("8.1.2.1/1", behind_get(&field(b":test", b"1")), refused),
        ("8.1.2.1/2", behind_get(&field(b":status", b"200")), refused),
        ("8.1.2.1/3", all(&[open(), frame(HEADERS, END_STREAM | END_HEADERS, 1, &field(b":method", b"GET"))]), refused),
        ("8.1.2.1/4", made(&[METHOD, &field(b"a", b"1"), SCHEME, PATH]), refused),
        ("8.1.2.2/1", behind_get(&field(b"connection", b"keep-alive")), refused),
        ("8.1.2.2/2", behind_get(&field(b"te", b"trailers, deflate")), refused),
        ("8.1.2.3/1", made(&[METHOD, SCHEME, &field(b":path", b"")]), refused),
        ("8.1.2.3/2", made(&[SCHEME, PATH]), refused),
        ("8.1.2.3/3", made(&[METHOD, PATH]), refused),
        ("8.1.2.3/4", made(&[METHOD, SCHEME]), refused),
        ("8.1.2.3/5", made(&[METHOD, METHOD, SCHEME, PATH]), refused),
        ("8.1.2.3/6", made(&[METHOD, SCHEME, SCHEME, PATH]), refused),
        ("8.1.2.3/7", made(&[METHOD, SCHEME, PATH, PATH]), refused),
        (
            "8.1.2.6/1",
            all(&[
                frame(HEADERS, END_HEADERS, 1, &[GET, &field(b"content-length", b"1")].concat()),
                frame(DATA, END_STREAM, 1, b"body"),
            ]),
            refused,
        ),
        (
            "8.1.2.6/2",
            all(&[
                frame(HEADERS, END_HEADERS, 1, &[GET, &field(b"content-length", b"6")].concat()),
                frame(DATA, 0, 1, b"body"),
                frame(DATA, END_STREAM, 1, b"body"),
            ]),
            refused,
        ),
        ("hpack 2.3.3/1", behind_get(b"\xc6"), Ends(&[COMPRESSION])),
        ("hpack 2.3.3/2", behind_get(b"\x7f\x07\x01a"), Ends(&[COMPRESSION])),
        ("hpack 4.2/1", behind_get(b"\x20"), Ends(&[COMPRESSION])),
        ("hpack 5.2/1", behind_get(b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff"), Ends(&[COMPRESSION])),
        ("hpack 5.2/2", behind_get(b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90"), Ends(&[COMPRESSION])),
        (
            "hpack 5.2/3",
            behind_get(b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\x49\x51\xff\xff\xff\xfa\x7f"),
            Ends(&[COMPRESSION]),
        ),
        ("hpack 6.1/1", behind_get(b"\x80"), Ends(&[COMPRESSION])),
        ("hpack 6.3/1", with(&[b"\x3f\xe2\x1f", GET].concat()), Ends(&[COMPRESSION])),
    ]
}

#[tokio::test]
async fn frames_and_fields_come_to_what_h2spec_demands() {
    let (address, _) = start().await;
    let mut wrong = Vec::new();
    for (case, said, expected) in of_frames().into_iter().chain(of_fields()) {
        // Whoever has nothing against it answers one more, for which there is room whatever was set before, and ends.
        let more = [get(LAST), setting(4, 65_535), frame(GOAWAY, 0, 0, &[0; 8])].concat();
        let answer = frames(&ask(address, &[PREFACE, &said, &more].concat()).await);
        let code = |kind, of, at: usize| {
            let mut payloads = answer.iter().filter(|frame| (frame.0, frame.1) == (kind, of)).map(|frame| &frame.2);
            payloads.find_map(|payload| payload.get(at).copied().filter(|code| *code != 0))
        };
        let answered: Vec<u32> = answer.iter().filter(|frame| frame.0 == HEADERS).map(|frame| frame.1).collect();
        let (ended, reset) = (code(GOAWAY, 0, 7), code(RST_STREAM, 1, 3));
        let ends_by = |codes: &[u8]| {
            !answered.contains(&LAST) && ended.is_none_or(|code| code == PROTOCOL || codes.contains(&code))
        };
        let holds = match expected {
            Answered => answered.contains(&LAST) && answered.len() > 1 && reset.is_none(),
            Ends(codes) => ends_by(codes),
            Resets(codes) => match reset {
                Some(code) => codes.contains(&code),
                None => ends_by(codes) || code(HEADERS, 1, 0) == Some(STATUS_400),
            },
        };
        if !holds {
            wrong.push(format!("{case}: {expected:?}, but: answered {answered:?}, reset {reset:?}, ended {ended:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn settings_and_pings_are_answered_and_what_is_no_preface_is_not() {
    let (address, _) = start().await;
    // 6.5.3/2, 6.7/1 and 6.9.2/1: what there is no room for comes when there is.
    let said = [
        PREFACE,
        &frame(PING, 0, 0, b"whatever"),
        &setting(4, 1),
        &get(1),
        &increment(1, 100),
        &frame(GOAWAY, 0, 0, &[0; 8]),
    ];
    let answer = frames(&ask(address, &said.concat()).await);
    assert!(answer.iter().any(|(kind, _, payload)| *kind == PING && payload == b"whatever"), "{answer:?}");
    let acknowledged = answer.iter().filter(|(kind, _, payload)| *kind == SETTINGS && payload.is_empty());
    assert_eq!(acknowledged.count(), 2, "{answer:?}");
    let sent: Vec<u8> =
        answer.into_iter().filter(|(kind, ..)| *kind == DATA).flat_map(|(.., payload)| payload).collect();
    assert_eq!(sent, b"served");
    // 3.5/2.
    let nonsense = ask(address, b"PRI * HTTP/2.0\r\n\r\nNO\r\n\r\n").await;
    assert!(!frames(&nonsense).iter().any(|(kind, ..)| *kind == HEADERS), "{nonsense:?}");
}
