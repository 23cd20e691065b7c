//! What plugins answer, as JSON Schemas (draft 7) written after the texts of the specification: 0.1.0 and 0.2.0 "Result",
//! 0.3.0 to 0.4.0 "Result" and "Well-known Structures", 1.0.0 and 1.1.0 "Section 5: Result Types". They name all there
//! is and let nothing else through.

use serde_json::{Value, json};

fn mac() -> Value {
    json!({ "type": "string", "pattern": "^([0-9a-f]{2}:){5}[0-9a-f]{2}$" })
}

fn v4(prefix: bool) -> Value {
    let pattern = if prefix { "^[0-9.]+/[0-9]{1,2}$" } else { "^[0-9.]+$" };
    json!({ "type": "string", "pattern": pattern })
}

fn v6(prefix: bool) -> Value {
    let pattern = if prefix { "^[0-9a-f:]+/[0-9]{1,3}$" } else { "^[0-9a-f:]+$" };
    json!({ "type": "string", "pattern": pattern })
}

fn dns() -> Value {
    let strings = json!({ "type": "array", "items": { "type": "string" } });
    json!({
        "type": "object", "additionalProperties": false,
        "properties": {
            "nameservers": strings, "domain": { "type": "string" }, "search": strings, "options": strings,
        },
    })
}

fn object(properties: Value, required: &[&str]) -> Value {
    json!({ "type": "object", "additionalProperties": false, "properties": properties, "required": required })
}

/// 0.1.0 and 0.2.0.
fn families(version: &str) -> Value {
    let family = |net: Value, address: Value| {
        let route = object(json!({ "dst": net, "gw": address }), &["dst"]);
        object(
            json!({ "ip": net, "gateway": address, "routes": { "type": "array", "items": route } }),
            &["ip"],
        )
    };
    object(
        json!({
            "cniVersion": { "const": version }, "dns": dns(),
            "ip4": family(v4(true), v4(false)), "ip6": family(v6(true), v6(false)),
        }),
        &["cniVersion"],
    )
}

/// 0.3.0 and later.
fn lists(version: &str) -> Value {
    let (before_1_0, since_1_1) = (version < "1.0.0", version >= "1.1.0");
    let number = json!({ "type": "integer", "minimum": 0 });
    let mut interface = json!({ "name": { "type": "string", "minLength": 1 }, "mac": mac(), "sandbox": { "type": "string" } });
    let mut ip = json!({
        "address": { "anyOf": [v4(true), v6(true)] }, "gateway": { "anyOf": [v4(false), v6(false)] }, "interface": number,
    });
    let mut route = json!({
        "dst": { "anyOf": [v4(true), v6(true)] }, "gw": { "anyOf": [v4(false), v6(false)] },
    });
    let mut ip_required = vec!["address"];
    if before_1_0 {
        ip["version"] = json!({ "enum": ["4", "6"] });
        ip_required.push("version");
    }
    if since_1_1 {
        interface["mtu"] = number.clone();
        interface["socketPath"] = json!({ "type": "string" });
        interface["pciID"] = json!({ "type": "string" });
        for field in ["mtu", "advmss", "priority", "table", "scope"] {
            route[field] = number.clone();
        }
    }
    let array = |items: Value| json!({ "type": "array", "items": items });
    object(
        json!({
            "cniVersion": { "const": version }, "dns": dns(),
            "interfaces": array(object(interface, &["name"])),
            "ips": array(object(ip, &ip_required)),
            "routes": array(object(route, &["dst"])),
        }),
        &["cniVersion", "interfaces", "ips"],
    )
}

fn assert_fits(schema: &Value, value: &Value) {
    assert!(jsonschema::draft7::meta::is_valid(schema), "{schema}");
    let validator = jsonschema::draft7::new(schema).expect("schema");
    let errors: Vec<String> =
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:?}\n{value:#}");
}

/// The answer to ADD. Indices into the list of interfaces are beyond schemas and looked at by hand.
pub(crate) fn assert_result(version: &str, result: &Value) {
    let schema = if version < "0.3.0" { families(version) } else { lists(version) };
    assert_fits(&schema, result);
    let interfaces = result["interfaces"].as_array().map_or(0, Vec::len) as u64;
    for ip in result["ips"].as_array().into_iter().flatten() {
        assert!(ip["interface"].as_u64().is_none_or(|index| index < interfaces), "{result:#}");
    }
}

/// An error.
pub(crate) fn assert_error(version: &str, error: &Value) {
    let text = json!({ "type": "string", "minLength": 1 });
    let schema = object(
        json!({
            "cniVersion": { "const": version }, "code": { "type": "integer", "minimum": 1 }, "msg": text, "details": text,
        }),
        &["cniVersion", "code", "msg"],
    );
    assert_fits(&schema, error);
}

/// The answer to VERSION.
pub(crate) fn assert_version(version: &str, answer: &Value) {
    let semantic = json!({ "type": "string", "pattern": "^[0-9]+\\.[0-9]+\\.[0-9]+$" });
    let schema = object(
        json!({
            "cniVersion": { "const": version },
            "supportedVersions": { "type": "array", "items": semantic, "minItems": 1, "uniqueItems": true },
        }),
        &["cniVersion", "supportedVersions"],
    );
    assert_fits(&schema, answer);
}
