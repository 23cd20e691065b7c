//! The JSON Schema, made from the types of [`raw`].

use std::sync::OnceLock;

use jsonschema::Validator;
use schemars::generate::SchemaSettings;
use serde_json::Value as Json;

use crate::raw;

/// The JSON Schema (draft 7) of homelab.yaml.
pub fn schema() -> Json {
    // Without references: every editor understands it, and a violation's place in the schema is a plain pointer.
    let settings = SchemaSettings::draft07().with(|s| s.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<raw::File>().to_value();
    tidy(&mut schema);
    schema
}

/// Makes the generated schema plainer: one level of `anyOf`, no Rust number formats, null wherever a value may be left
/// empty, descriptions in one line.
fn tidy(schema: &mut Json) {
    match schema {
        Json::Array(items) => items.iter_mut().for_each(tidy),
        Json::Object(map) => {
            if map.get("format").and_then(Json::as_str).is_some_and(|f| f.starts_with("uint")) {
                map.remove("format");
            }
            if let Some(Json::String(text)) = map.get_mut("description") {
                *text = text.replace('\n', " ");
            }
            let nullable = match map.get("type") {
                Some(Json::Array(types)) => types.iter().any(|t| t == "null"),
                other => other.is_none() && map.contains_key("default"),
            };
            if let Some(Json::Array(values)) = map.get_mut("enum")
                && nullable
            {
                values.push(Json::Null);
            }
            if let Some(Json::Array(variants)) = map.get_mut("anyOf") {
                let flat = variants.drain(..).flat_map(|v| match v.get("anyOf") {
                    Some(Json::Array(inner)) => inner.clone(),
                    _ => vec![v],
                });
                *variants = flat.collect::<Vec<_>>();
            }
            map.values_mut().for_each(tidy);
        }
        _ => {}
    }
}

/// The text of `schemas/homelab.schema.json`: pretty JSON and a newline.
pub fn schema_text() -> String {
    format!("{:#}\n", schema())
}

/// As [`schema`], but without null: an empty value counts as left out before the schema is asked.
pub(crate) fn strict() -> &'static Json {
    static STRICT: OnceLock<Json> = OnceLock::new();
    STRICT.get_or_init(|| {
        let mut schema = schema();
        strip(&mut schema);
        schema
    })
}

fn strip(schema: &mut Json) {
    match schema {
        Json::Array(items) => items.iter_mut().for_each(strip),
        Json::Object(map) => {
            if let Some(Json::Array(types)) = map.get_mut("type") {
                types.retain(|t| t != "null");
                if let [one] = types.as_slice() {
                    let one = one.clone();
                    map.insert("type".into(), one);
                }
            }
            if let Some(Json::Array(variants)) = map.get_mut("anyOf") {
                variants.retain(|v| v != &serde_json::json!({"type": "null"}));
                if let [Json::Object(one)] = variants.as_slice() {
                    let one = one.clone();
                    map.remove("anyOf");
                    for (key, value) in one {
                        map.entry(key).or_insert(value);
                    }
                }
            }
            if let Some(Json::Array(values)) = map.get_mut("enum") {
                values.retain(|v| !v.is_null());
            }
            map.values_mut().for_each(strip);
        }
        _ => {}
    }
}

pub(crate) fn validator() -> Option<&'static Validator> {
    static VALIDATOR: OnceLock<Option<Validator>> = OnceLock::new();
    VALIDATOR.get_or_init(|| jsonschema::draft7::new(strict()).ok()).as_ref()
}
