//! What a server says of its load with its answers (ORCA, gRFC A51): `xds.data.orca.v3.OrcaLoadReport`, in the form of gRPC's
//! trailer and in Envoy's forms of a header.

use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::{HeaderMap, HeaderName, HeaderValue};

/// The message in base64: of gRPC, in trailers.
pub const BINARY: HeaderName = HeaderName::from_static("endpoint-load-metrics-bin");
/// `TEXT`, `JSON` or `BIN`, and the report: of HTTP.
pub const TEXT: HeaderName = HeaderName::from_static("endpoint-load-metrics");

/// More metrics with names of their own than this are no report.
const MOST_NAMED: usize = 256;

/// With padding or without it, as gRPC has it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_encode_padding(false).with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The load of a server. What is 0 was not said.
///
/// ```
/// use mesh_core::load_report::LoadReport;
///
/// let mut report = LoadReport::default();
/// (report.cpu_utilization, report.requests_per_second) = (0.4, 120.0);
/// assert_eq!(report.to_text(), "TEXT cpu_utilization=0.4,rps_fractional=120");
/// assert_eq!(LoadReport::from_binary(&report.to_binary()), Some(report));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LoadReport {
    /// The share of the processor that is in use: 1 is all of what it may have. It may be more.
    pub cpu_utilization: f64,
    /// The share of the memory that is in use.
    pub memory_utilization: f64,
    /// How far it is from what it can do, as the application sees it: 1 is all of it. Goes before the processor's.
    pub application_utilization: f64,
    /// Requests per second that it answers.
    pub requests_per_second: f64,
    /// How many of them fail, per second.
    pub errors_per_second: f64,
    /// Other metrics, by name.
    pub named_metrics: Vec<(String, f64)>,
    /// Other utilizations, by name.
    pub utilization: Vec<(String, f64)>,
    /// What the request cost, by name.
    pub request_cost: Vec<(String, f64)>,
}

/// The field of a map, its name and its entries.
type Map<'r> = (u8, &'static str, &'r [(String, f64)]);

impl LoadReport {
    /// The report in the headers or trailers of an answer, if there is one that can be read.
    pub fn of(headers: &HeaderMap) -> Option<LoadReport> {
        if let Some(value) = headers.get(BINARY) {
            return LoadReport::from_binary(&BASE64.decode(value).ok()?);
        }
        LoadReport::from_text(headers.get(TEXT)?.to_str().ok()?)
    }

    /// The value of [`BINARY`].
    pub fn to_header(&self) -> HeaderValue {
        HeaderValue::try_from(BASE64.encode(self.to_binary())).unwrap_or(HeaderValue::from_static(""))
    }

    /// The value of a metric by its name, as `metric_names_for_computing_utilization` has them: `cpu_utilization`,
    /// `named_metrics.queue`, `utilization.disk`.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let of =
            |all: &[(String, f64)], name: &str| all.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
        match name.split_once('.') {
            Some(("named_metrics", name)) => of(&self.named_metrics, name),
            Some(("utilization", name)) => of(&self.utilization, name),
            _ => match name {
                "cpu_utilization" => Some(self.cpu_utilization),
                "mem_utilization" => Some(self.memory_utilization),
                "application_utilization" => Some(self.application_utilization),
                _ => None,
            },
        }
    }

    fn numbers(&self) -> [(u8, &'static str, f64); 5] {
        [
            (1, "cpu_utilization", self.cpu_utilization),
            (2, "mem_utilization", self.memory_utilization),
            (9, "application_utilization", self.application_utilization),
            (6, "rps_fractional", self.requests_per_second),
            (7, "eps", self.errors_per_second),
        ]
    }

    fn maps(&self) -> [Map<'_>; 3] {
        [
            (8, "named_metrics", &self.named_metrics),
            (5, "utilization", &self.utilization),
            (4, "request_cost", &self.request_cost),
        ]
    }

    /// In Envoy's form for people.
    pub fn to_text(&self) -> String {
        let mut text = String::from("TEXT ");
        let numbers = self.numbers().into_iter().filter(|(_, _, value)| *value != 0.0);
        let numbers = numbers.map(|(_, name, value)| (name.to_owned(), value));
        let named = self
            .maps()
            .into_iter()
            .flat_map(|(_, map, entries)| entries.iter().map(move |(name, value)| (format!("{map}.{name}"), *value)));
        for (at, (name, value)) in numbers.chain(named).enumerate() {
            let comma = if at == 0 { "" } else { "," };
            // A string takes everything.
            _ = write!(text, "{comma}{name}={value}");
        }
        text
    }

    /// From a header of Envoy's forms.
    pub fn from_text(value: &str) -> Option<LoadReport> {
        let (form, rest) = value.split_once(' ')?;
        match form {
            "BIN" => LoadReport::from_binary(&BASE64.decode(rest.trim()).ok()?),
            "JSON" => LoadReport::from_json(rest),
            "TEXT" => {
                let mut report = LoadReport::default();
                for pair in rest.split(',').filter(|pair| !pair.trim().is_empty()) {
                    let (name, value) = pair.split_once('=')?;
                    report.set(name.trim(), value.trim().parse().ok()?)?;
                }
                Some(report)
            }
            _ => None,
        }
    }

    fn from_json(text: &str) -> Option<LoadReport> {
        let serde_json::Value::Object(fields) = serde_json::from_str(text).ok()? else { return None };
        let mut report = LoadReport::default();
        for (name, value) in &fields {
            let snake = match name.as_str() {
                "cpuUtilization" => "cpu_utilization",
                "memUtilization" => "mem_utilization",
                "applicationUtilization" => "application_utilization",
                "rpsFractional" => "rps_fractional",
                "namedMetrics" => "named_metrics",
                "requestCost" => "request_cost",
                name => name,
            };
            match value {
                serde_json::Value::Object(entries) => {
                    for (key, value) in entries {
                        report.set(&format!("{snake}.{key}"), value.as_f64()?)?;
                    }
                }
                value => report.set(snake, value.as_f64()?)?,
            }
        }
        Some(report)
    }

    /// Sets one value by its name; `None` where there is no such, or it is no load.
    fn set(&mut self, name: &str, value: f64) -> Option<()> {
        let is_load = value.is_finite() && value >= 0.0;
        let number = match name {
            "cpu_utilization" => &mut self.cpu_utilization,
            "mem_utilization" => &mut self.memory_utilization,
            "application_utilization" => &mut self.application_utilization,
            "rps_fractional" | "rps" => &mut self.requests_per_second,
            "eps" => &mut self.errors_per_second,
            _ => {
                let (map, name) = name.split_once('.')?;
                let map = match map {
                    "named_metrics" => &mut self.named_metrics,
                    "utilization" => &mut self.utilization,
                    "request_cost" => &mut self.request_cost,
                    _ => return None,
                };
                map.push((name.to_owned(), value));
                return (value.is_finite() && map.len() <= MOST_NAMED).then_some(());
            }
        };
        *number = value;
        is_load.then_some(())
    }

    /// As Protobuf.
    pub fn to_binary(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let double = |bytes: &mut Vec<u8>, field: u8, value: f64| {
            bytes.push(field << 3 | 1);
            bytes.extend(value.to_le_bytes());
        };
        for (field, _, value) in self.numbers().into_iter().filter(|(_, _, value)| *value != 0.0) {
            double(&mut bytes, field, value);
        }
        for (field, _, entries) in self.maps() {
            for (name, value) in entries {
                let mut entry = vec![1 << 3 | 2];
                varint(&mut entry, name.len());
                entry.extend(name.as_bytes());
                double(&mut entry, 2, *value);
                bytes.push(field << 3 | 2);
                varint(&mut bytes, entry.len());
                bytes.extend(entry);
            }
        }
        bytes
    }

    /// From Protobuf; fields that are not known are passed over.
    pub fn from_binary(bytes: &[u8]) -> Option<LoadReport> {
        let mut report = LoadReport::default();
        let mut rest = bytes;
        while !rest.is_empty() {
            match field(&mut rest)? {
                (1, Field::Double(value)) => report.set("cpu_utilization", value)?,
                (2, Field::Double(value)) => report.set("mem_utilization", value)?,
                (9, Field::Double(value)) => report.set("application_utilization", value)?,
                (6, Field::Double(value)) => report.set("rps_fractional", value)?,
                (7, Field::Double(value)) => report.set("eps", value)?,
                (map @ (4 | 5 | 8), Field::Bytes(mut entry)) => {
                    let (mut name, mut number) = ("", 0.0);
                    while !entry.is_empty() {
                        match field(&mut entry)? {
                            (1, Field::Bytes(text)) => name = std::str::from_utf8(text).ok()?,
                            (2, Field::Double(value)) => number = value,
                            _ => {}
                        }
                    }
                    let map = match map {
                        4 => "request_cost",
                        5 => "utilization",
                        _ => "named_metrics",
                    };
                    report.set(&format!("{map}.{name}"), number)?;
                }
                _ => {}
            }
        }
        Some(report)
    }
}

/// How often a client asks for reports, out of its `OrcaLoadReportRequest`; zero where it does not say. `None` where it is none.
///
/// ```
/// use std::time::Duration;
///
/// use mesh_core::load_report::asked_interval;
///
/// assert_eq!(asked_interval(&[0x0a, 2, 8, 10]), Some(Duration::from_secs(10)));
/// ```
pub fn asked_interval(request: &[u8]) -> Option<Duration> {
    let (mut rest, mut seconds, mut nanos) = (request, 0, 0);
    while !rest.is_empty() {
        let (1, Field::Bytes(mut interval)) = field(&mut rest)? else { continue };
        while !interval.is_empty() {
            match field(&mut interval)? {
                (1, Field::Number(number)) => seconds = number,
                (2, Field::Number(number)) => nanos = number,
                _ => {}
            }
        }
    }
    // Negative ones are beyond all bounds as unsigned numbers.
    let is_positive = i64::try_from(seconds).is_ok() && nanos < 1_000_000_000;
    is_positive.then(|| Duration::new(seconds, nanos as u32))
}

fn varint(bytes: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

enum Field<'b> {
    Number(u64),
    Double(f64),
    Bytes(&'b [u8]),
    Other,
}

/// The next field of a message: its number and its value.
fn field<'b>(bytes: &mut &'b [u8]) -> Option<(u64, Field<'b>)> {
    let tag = number(bytes)?;
    let value = match tag & 7 {
        0 => Field::Number(number(bytes)?),
        1 => {
            let (value, rest) = bytes.split_first_chunk::<8>()?;
            *bytes = rest;
            Field::Double(f64::from_le_bytes(*value))
        }
        2 => {
            let length = usize::try_from(number(bytes)?).ok()?;
            let (value, rest) = bytes.split_at_checked(length)?;
            *bytes = rest;
            Field::Bytes(value)
        }
        5 => {
            *bytes = bytes.get(4..)?;
            Field::Other
        }
        _ => return None,
    };
    Some((tag >> 3, value))
}

fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> LoadReport {
        LoadReport {
            cpu_utilization: 0.5,
            memory_utilization: 0.25,
            application_utilization: 1.5,
            requests_per_second: 1000.5,
            errors_per_second: 2.0,
            named_metrics: vec![("queue".into(), 7.0), ("x".repeat(200), -1.0)],
            utilization: vec![("disk".into(), 0.1)],
            request_cost: vec![("rows".into(), 12.0)],
        }
    }

    #[test]
    fn what_a_client_asks_for_is_read_and_nonsense_is_not() {
        let cases: [(&[u8], Option<Duration>); 7] = [
            (&[], Some(Duration::ZERO)),
            (&[0x0a, 0], Some(Duration::ZERO)),
            (&[0x12, 1, b'a', 0x0a, 4, 8, 1, 0x10, 5], Some(Duration::new(1, 5))),
            // A second less than nothing, and more nanoseconds than a second has.
            (&[0x0a, 11, 8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1], None),
            (&[0x0a, 6, 0x10, 0x80, 0x94, 0xeb, 0xdc, 0x03], None),
            (&[0x0a, 9, 8], None),
            (&[0xff], None),
        ];
        for (request, expected) in cases {
            assert_eq!(asked_interval(request), expected, "{request:?}");
        }
    }

    #[test]
    fn a_report_is_the_same_in_every_form() {
        let report = full();
        assert_eq!(LoadReport::from_binary(&report.to_binary()), Some(report.clone()));
        assert_eq!(LoadReport::from_text(&report.to_text()), Some(report.clone()));
        let mut headers = HeaderMap::new();
        headers.insert(BINARY, report.to_header());
        assert_eq!(LoadReport::of(&headers), Some(report.clone()));
        let text = format!("BIN {}", report.to_header().to_str().unwrap());
        assert_eq!(LoadReport::from_text(&text), Some(report));
        let json = r#"JSON {"cpuUtilization": 0.5, "eps": 1, "named_metrics": {"queue": 3}}"#;
        let read = LoadReport::from_text(json).unwrap();
        assert_eq!(
            (read.cpu_utilization, read.errors_per_second, read.metric("named_metrics.queue")),
            (0.5, 1.0, Some(3.0))
        );
        assert_eq!(
            (read.metric("cpu_utilization"), read.metric("utilization.x"), read.metric("x")),
            (Some(0.5), None, None)
        );
    }

    #[test]
    fn what_is_no_report_is_none() {
        for text in
            ["", "TEXT", "TEXT a", "TEXT cpu_utilization=x", "TEXT cpu_utilization=-1", "TEXT eps=NaN", "YAML a=1"]
        {
            assert_eq!(LoadReport::from_text(text), None, "{text}");
        }
        for text in ["BIN !", "JSON []", "JSON {\"cpuUtilization\": \"1\"}", "TEXT other=1", "BIN CQ"] {
            assert_eq!(LoadReport::from_text(text), None, "{text}");
        }
        // Truncated anywhere, it is none or less; nothing panics.
        let bytes = full().to_binary();
        for end in 0..bytes.len() {
            _ = LoadReport::from_binary(&bytes[..end]);
        }
        let many: Vec<_> = (0..300).map(|at| (format!("m{at}"), 1.0)).collect();
        let report = LoadReport { named_metrics: many, ..LoadReport::default() };
        assert_eq!(LoadReport::from_binary(&report.to_binary()), None);
    }
}
