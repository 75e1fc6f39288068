//! Objects that somebody changes: server-side apply of specifications key by key, deletion, ConfigMaps, WorkloadEntries, and who asks.

use std::collections::BTreeMap;

use http::{HeaderMap, Method, StatusCode};
use serde_json::{Map, Value, json};

use super::{Key, World, told_apart};

impl World {
    /// What becomes of a request that changes an object, and what it is called when requests are counted; `None` where it is another one.
    pub(super) fn changed(
        &mut self,
        method: &Method,
        parts: &[&str],
        query: &BTreeMap<&str, &str>,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Option<(String, Result<Value, StatusCode>)> {
        let namespace = parts.iter().position(|part| *part == "namespaces").and_then(|at| parts.get(at + 1).copied());
        let key = |plural: &str, name: &str| -> Key {
            (told_apart(parts, plural).to_owned(), namespace.unwrap_or_default().to_owned(), name.to_owned())
        };
        let json = || serde_json::from_slice::<Value>(body).unwrap_or_default();
        if parts.contains(&"leases") {
            return None;
        }
        match (method.as_str(), parts) {
            ("POST", [.., "selfsubjectreviews"]) => {
                Some(("who".to_owned(), Ok(json!({"status": {"userInfo": {"username": "ann"}}}))))
            }
            ("POST", [.., plural @ ("configmaps" | "workloadentries")]) => {
                let mut object = json();
                let key = key(plural, object["metadata"]["name"].as_str().expect("a name"));
                object["metadata"]["namespace"] = key.1.as_str().into();
                self.admit(plural, &mut object);
                let is_there = self.objects.contains_key(&key);
                let made = if is_there { Err(StatusCode::CONFLICT) } else { Ok(self.store(&key, object)) };
                Some((format!("make {plural}"), made))
            }
            ("PUT", [.., plural @ "workloadentries", name]) => {
                let (key, mut object) = (key(plural, name), json());
                self.admit(plural, &mut object);
                let put = match self.objects.get(&key) {
                    None => Err(StatusCode::NOT_FOUND),
                    Some(known) if known["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] => {
                        Err(StatusCode::CONFLICT)
                    }
                    Some(_) => Ok(self.store(&key, object)),
                };
                Some(("put workloadentries".to_owned(), put))
            }
            ("GET", [.., plural @ "workloadgroups", name]) => {
                let group = self.objects.get(&key(plural, name)).cloned();
                Some(("get workloadgroups".to_owned(), group.ok_or(StatusCode::NOT_FOUND)))
            }
            ("PATCH", [.., "configmaps", name]) if headers["content-type"] == "application/merge-patch+json" => {
                let key = key("configmaps", name);
                let merged = self.objects.get(&key).cloned().ok_or(StatusCode::NOT_FOUND).map(|mut object| {
                    object["data"] = json()["data"].clone();
                    self.store(&key, object)
                });
                Some(("patch configmaps".to_owned(), merged))
            }
            ("PATCH", [.., plural, name]) => {
                assert_eq!(headers["content-type"], "application/apply-patch+yaml");
                assert_eq!((query["fieldManager"], query["fieldValidation"]), ("mesh-control", "Strict"));
                let is_dry = query.get("dryRun") == Some(&"All");
                let what = if is_dry { "try" } else { "apply" };
                let applied = self.apply(&key(plural, name), &json(), is_dry, query.contains_key("force"));
                Some((format!("{what} {plural}"), applied))
            }
            ("DELETE", [.., plural, name]) => {
                let options = json();
                let is_dry = options["dryRun"] == json!(["All"]);
                let what = if is_dry { "try" } else { "delete" };
                Some((format!("{what} {plural}"), self.remove(&key(plural, name), &options, is_dry)))
            }
            _ => None,
        }
    }

    fn admit(&self, plural: &str, object: &mut Value) {
        if self.has_webhook && plural == "workloadentries" {
            object["spec"]["network"] = "somewhere".into();
        }
    }

    fn apply(&mut self, key: &Key, written: &Value, is_dry: bool, is_forced: bool) -> Result<Value, StatusCode> {
        assert!(written["metadata"]["creationTimestamp"].is_null(), "that is the server's");
        if key.2 == self.is_refused {
            return Err(StatusCode::UNPROCESSABLE_ENTITY);
        }
        if key.2 == self.is_broken && !is_dry {
            return Err(StatusCode::INTERNAL_SERVER_ERROR);
        }
        if !is_dry && let Some(rival) = self.rival.take() {
            self.store(key, rival);
        }
        if !is_dry && key.2 == self.is_deleted {
            self.is_deleted = "";
            self.remove(key, &Value::Null, false)?;
        }
        let mut object = self.objects.get(key).cloned();
        if let (Some(late), true, false) = (&mut object, self.too_late > 0, is_dry) {
            self.too_late -= 1;
            late["metadata"]["labels"] = json!({"late": self.too_late.to_string()});
            *late = self.store(key, late.clone());
        }
        let version = &written["metadata"]["resourceVersion"];
        let known = object.as_ref().map(|object| &object["metadata"]["resourceVersion"]);
        // What is not there is made, whatever its version was to be, unless it is to be one that was there.
        let is_gone = known.is_none() && !written["metadata"]["uid"].is_null();
        if is_gone || known.is_some_and(|known| !version.is_null() && known != version) {
            return Err(StatusCode::CONFLICT);
        }
        let is_new = object.is_none();
        let mut object = object.unwrap_or_default();
        let mut spec: Map<String, Value> = object["spec"].as_object().cloned().unwrap_or_default();
        let before = spec.clone();
        for gone in self.applied.get(key).and_then(Value::as_object).into_iter().flat_map(Map::keys) {
            spec.remove(gone);
        }
        spec.extend(written["spec"].as_object().cloned().unwrap_or_default());
        if key.0 == "services" {
            // What the server adds.
            let address = before.get("clusterIP").cloned().unwrap_or_else(|| "10.0.0.1".into());
            spec.entry("clusterIP").or_insert(address);
        }
        if key.2 == self.is_others && !is_forced && !is_new && spec != before {
            return Err(StatusCode::CONFLICT);
        }
        for name in ["apiVersion", "kind"] {
            object[name] = written[name].clone();
        }
        if is_new {
            object["metadata"] = json!({"creationTimestamp": "2026-01-01T00:00:00Z", "uid": "u"});
        }
        for name in ["name", "namespace", "labels", "annotations"] {
            if let Some(value) = written["metadata"].get(name) {
                object["metadata"][name] = value.clone();
            }
        }
        object["spec"] = spec.into();
        if is_dry {
            return Ok(object);
        }
        self.applied.insert(key.clone(), written["spec"].clone());
        Ok(self.store(key, object))
    }

    fn remove(&mut self, key: &Key, options: &Value, is_dry: bool) -> Result<Value, StatusCode> {
        let object = self.objects.get(key).cloned().ok_or(StatusCode::NOT_FOUND)?;
        let version = &options["preconditions"]["resourceVersion"];
        if !version.is_null() && *version != object["metadata"]["resourceVersion"] {
            return Err(StatusCode::CONFLICT);
        }
        if !is_dry {
            self.version += 1;
            self.objects.remove(key);
            self.applied.remove(key);
            self.tell(&key.0, "DELETED", &object);
        }
        Ok(object)
    }
}
