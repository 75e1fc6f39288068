//! What the API takes and answers, as an OpenAPI document (3.1): `docs/openapi.json`, and `/v1/openapi.json` of the server. A test
//! beside the API holds it against what is read and written.

use serde_json::{Value, json};

/// The document.
pub(crate) fn document() -> Value {
    let refused =
        |what: &str| json!({"description": what, "content": {"application/json": {"schema": reference("Refusal")}}});
    let answers = |what: &str, schema: &str| {
        json!({
            "200": {"description": what, "content": {"application/json": {"schema": reference(schema)}}},
            "401": refused("Nobody knows who asks."),
            "403": refused("Who asks is not on the list."),
            "503": refused("etcd does not answer, or says no."),
        })
    };
    let query = |name: &str, what: &str| json!({"name": name, "in": "query", "required": false, "description": what, "schema": {"type": "string"}});
    let mut changed = answers("What was done.", "Done");
    for (status, what) in [
        ("400", "It is no change."),
        ("404", "There is no such object, or no such change."),
        ("409", "Somebody else has changed it meanwhile."),
        ("422", "It is wrong, as `validate` says; nothing was changed."),
    ] {
        if let Some(all) = changed.as_object_mut() {
            all.insert(status.to_owned(), refused(what));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "mesh-control",
            "version": "1",
            "summary": "The objects of a mesh that etcd holds: who reads and changes them is on a list.",
        },
        "security": [{"certificate": []}, {"token": []}],
        "paths": {
            "/v1/objects": {"get": {
                "operationId": "objects",
                "summary": "The objects, each with its version.",
                "parameters": [query("kind", "VirtualService, virtualservices"), query("namespace", "A namespace"), query("name", "A name")],
                "responses": answers("The objects.", "Objects"),
            }},
            "/v1/history": {"get": {
                "operationId": "history",
                "summary": "Who has changed what, the last change first.",
                "responses": answers("The changes that are kept.", "History"),
            }},
            "/v1/changes": {"post": {
                "operationId": "change",
                "summary": "Changes a set of objects, all of them or none.",
                "requestBody": {"required": true, "content": {"application/json": {"schema": reference("Wanted")}}},
                "responses": changed,
            }},
            "/v1/openapi.json": {"get": {
                "operationId": "openapi",
                "summary": "This document.",
                "security": [],
                "responses": {"200": {"description": "It.", "content": {"application/json": {"schema": {"type": "object"}}}}},
            }},
        },
        "components": {"securitySchemes": schemes(), "schemas": schemas()},
    })
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn schemes() -> Value {
    json!({
        "certificate": {"type": "mutualTLS", "description": "A certificate of the mesh: its SPIFFE ID is who asks."},
        "token": {"type": "http", "scheme": "bearer", "description": "A token of --api-tokens: its name is who asks."},
    })
}

fn schemas() -> Value {
    let text = |what: &str| json!({"type": "string", "description": what});
    let texts = |what: &str| json!({"type": "array", "items": {"type": "string"}, "description": what});
    let one_of = |name: &str, schema: Value| json!({"type": "object", "required": [name], "properties": {name: schema}, "additionalProperties": false});
    json!({
        "Wanted": {
            "type": "object",
            "required": ["what"],
            "additionalProperties": false,
            "properties": {
                "what": {"oneOf": [
                    one_of("apply", json!({
                        "type": "object", "additionalProperties": {"type": "string"},
                        "description": "Texts with objects, as YAML or JSON, by the names by which findings call them.",
                    })),
                    one_of("delete", texts("Objects that are to be gone: virtualservices.networking.istio.io/shop/reviews.")),
                    one_of("rollback", json!({
                        "type": ["integer", "null"], "minimum": 0,
                        "description": "All objects become what they were after this change; null takes the last one back.",
                    })),
                ]},
                "message": text("Why, for the history."),
                "dryRun": {"type": "boolean", "description": "Only says what would be done."},
            },
        },
        "Done": {
            "type": "object",
            "required": ["number", "objects", "leftOut"],
            "properties": {
                "number": {"type": ["integer", "null"], "description": "The number of the change; null where nothing was changed."},
                "objects": {"type": "array", "items": {
                    "type": "object",
                    "required": ["object", "verb", "diff"],
                    "properties": {
                        "object": text("VirtualService shop/reviews"),
                        "verb": {"type": "string", "enum": ["created", "configured", "unchanged", "deleted"]},
                        "diff": text("The difference, line by line, as YAML."),
                    },
                }},
                "leftOut": texts("Which documents are no objects of the mesh, and why."),
            },
        },
        "Objects": {
            "type": "object",
            "required": ["objects", "strange"],
            "properties": {
                "objects": {"type": "array", "items": {
                    "type": "object",
                    "required": ["object", "version", "value"],
                    "properties": {
                        "object": text("virtualservices.networking.istio.io/shop/reviews"),
                        "version": {"type": "integer", "description": "Another one after each change; as `metadata.resourceVersion` of what is applied, it holds only if nobody else was faster."},
                        "value": {"type": ["object", "string"], "description": "The object; what is none, since somebody wrote it by hand, as the text that it is."},
                    },
                }},
                "strange": texts("Keys beside them that are those of no object."),
            },
        },
        "History": {
            "type": "object",
            "required": ["changes"],
            "properties": {"changes": {"type": "array", "items": {
                "type": "object",
                "required": ["number", "author", "time", "objects"],
                "properties": {
                    "number": {"type": "integer", "minimum": 1},
                    "author": text("Who has changed it."),
                    "message": text("Why."),
                    "time": text("When, in RFC 3339."),
                    "attempt": text("Tells the attempts of one change from those of another."),
                    "objects": {"type": "array", "items": {
                        "type": "object",
                        "required": ["object", "verb"],
                        "properties": {
                            "object": text("virtualservices.networking.istio.io/shop/reviews"),
                            "verb": {"type": "string", "enum": ["created", "configured", "deleted"]},
                            "before": {"description": "What it was before."},
                        },
                    }},
                },
            }}},
        },
        "Refusal": {
            "type": "object",
            "required": ["message"],
            "properties": {"message": text("Why nothing was done.")},
        },
    })
}
