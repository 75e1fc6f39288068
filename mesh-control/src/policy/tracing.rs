//! How requests are traced: what the settings of the mesh say of all workloads (`enableTracing`, `defaultConfig.tracing`).

use std::collections::BTreeMap;

use super::mesh::MeshSettings;
use crate::config::istio::mesh_config::CustomTag;

/// The share of requests, in percent, that begin a trace where tracing is on and nobody says how many (Istio).
pub const DEFAULT_SAMPLING: f64 = 1.0;

/// How the requests of a listener are traced.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tracing {
    /// How many requests of 100 begin a trace, of those that are no part of one; `None` for [`DEFAULT_SAMPLING`].
    pub sampling: Option<f64>,
    /// No spans are reported, not even of requests that are traced elsewhere. What callers send of a trace is handed on.
    pub is_disabled: bool,
    /// What spans have besides, by its name.
    pub custom_tags: BTreeMap<String, Tag>,
    /// How much of a path is in a span, in bytes; `None` for Envoy's 256.
    pub max_path_length: Option<u32>,
    /// In which headers a trace that begins here is told; `None` for W3C's.
    pub provider: Option<Provider>,
}

/// What a span has besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tag {
    /// This text.
    Literal(String),
    /// A variable of the workload's environment.
    Environment {
        /// Its name.
        name: String,
        /// What stands there where it is not set; without, there is no tag.
        default: String,
    },
    /// A header of the request.
    Header {
        /// Its name.
        name: String,
        /// What stands there where the request has none; without, there is no tag.
        default: String,
    },
}

/// Whose headers tell others of a trace. Where spans go is for the application to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// W3C's `traceparent`.
    OpenTelemetry,
    /// B3's, several.
    Zipkin,
}

impl MeshSettings {
    /// How requests are traced; `None` where the settings say nothing of it, so that it is the application's to say.
    pub fn tracing(&self) -> Option<Tracing> {
        let spec = &self.object.as_ref()?.spec;
        if spec.enable_tracing == Some(false) {
            return Some(Tracing { is_disabled: true, ..Tracing::default() });
        }
        let written = spec.default_config.as_ref().and_then(|config| config.tracing.as_ref());
        if written.is_none() && spec.enable_tracing.is_none() {
            return None;
        }
        let mut tracing = Tracing::default();
        if let Some(written) = written {
            tracing.sampling = written.sampling;
            tracing.max_path_length = written.max_path_tag_length;
            tracing.custom_tags =
                written.custom_tags.iter().filter_map(|(name, tag)| Some((name.clone(), Tag::of(tag)?))).collect();
        }
        Some(tracing)
    }
}

impl Tag {
    /// What a tag says that is written; `None` for one that says nothing.
    pub fn of(written: &CustomTag) -> Option<Tag> {
        if let Some(literal) = &written.literal {
            return Some(Tag::Literal(literal.value.clone()));
        }
        if let Some(variable) = &written.environment {
            return Some(Tag::Environment {
                name: variable.name.value.clone(),
                default: variable.default_value.clone(),
            });
        }
        let header = written.header.as_ref()?;
        Some(Tag::Header { name: header.name.value.clone(), default: header.default_value.clone() })
    }
}
