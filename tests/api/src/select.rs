//! Label and field selectors.

use serde_json::Value;

use crate::Failure;

/// Which objects a list or a watch is about: all that meet every condition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    at: At,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum At {
    Label(String),
    /// Names from the outermost to the innermost. One that is missing is empty.
    Field(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Exists,
    Missing,
    In(Vec<String>),
    /// Also met where there is no value.
    NotIn(Vec<String>),
}

impl Selector {
    /// The two parameters of a request as they are written; `known` are the fields that the resource has for this.
    pub(crate) fn parse(labels: &str, fields: &str, known: &[&str]) -> Result<Selector, Failure> {
        let mut conditions = Vec::new();
        for text in requirements(labels) {
            conditions.push(label(text).ok_or_else(|| {
                Failure::BadRequest(format!("unable to parse requirement: {text:?} is no label selector"))
            })?);
        }
        for text in fields.split(',').filter(|text| !text.is_empty()) {
            conditions.push(field(text, known)?);
        }
        Ok(Selector { conditions })
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.conditions.iter().all(|condition| condition.met(object))
    }
}

impl Condition {
    fn met(&self, object: &Value) -> bool {
        let value = match &self.at {
            At::Label(key) => object["metadata"]["labels"][key].as_str(),
            At::Field(path) => {
                let field = path.iter().fold(object, |object, name| &object[name]);
                Some(field.as_str().unwrap_or_default())
            }
        };
        let among = |values: &[String]| value.is_some_and(|value| values.iter().any(|one| one == value));
        match &self.test {
            Test::Exists => value.is_some(),
            Test::Missing => value.is_none(),
            Test::In(values) => among(values),
            Test::NotIn(values) => !among(values),
        }
    }
}

/// The parts between commas that are in no brackets.
fn requirements(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    let parts = text.split(move |c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty())
}

/// `key`, `!key`, `key=value`, `key==value`, `key!=value`, `key in (a,b)`, `key notin (a,b)`.
fn label(text: &str) -> Option<Condition> {
    let one = |value: &str| vec![value.trim().to_owned()];
    let (key, test) = if let Some(key) = text.strip_prefix('!') {
        (key, Test::Missing)
    } else if let Some((key, value)) = text.split_once("!=") {
        (key, Test::NotIn(one(value)))
    } else if let Some((key, value)) = text.split_once('=') {
        (key, Test::In(one(value.trim_start_matches('='))))
    } else if let Some((head, values)) = text.strip_suffix(')').and_then(|rest| rest.split_once('(')) {
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        match head.trim().rsplit_once(' ')? {
            (key, "in") => (key, Test::In(values)),
            (key, "notin") => (key, Test::NotIn(values)),
            _ => return None,
        }
    } else {
        (text, Test::Exists)
    };
    let key = key.trim();
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    (!key.is_empty() && key.chars().all(fits)).then(|| Condition { at: At::Label(key.to_owned()), test })
}

/// `path=value`, `path==value`, `path!=value`.
fn field(text: &str, known: &[&str]) -> Result<Condition, Failure> {
    let (path, test) = match (text.split_once("!="), text.split_once('=')) {
        (Some((path, value)), _) => (path, Test::NotIn(vec![value.to_owned()])),
        (None, Some((path, value))) => (path, Test::In(vec![value.trim_start_matches('=').to_owned()])),
        (None, None) => return Err(Failure::BadRequest(format!("invalid selector: {text:?}"))),
    };
    if !["metadata.name", "metadata.namespace"].contains(&path) && !known.contains(&path) {
        return Err(Failure::BadRequest(format!("field label not supported: {path}")));
    }
    Ok(Condition { at: At::Field(path.split('.').map(str::to_owned).collect()), test })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Resource;
    use serde_json::json;

    #[test]
    fn selectors_choose_as_kubernetes_does() {
        let object = json!({ "metadata": {
            "name": "a", "namespace": "b", "labels": { "app": "web", "example.org/tier": "front" },
        }, "spec": { "type": "ClusterIP" } });
        for (labels, fields, expected) in [
            ("", "", true),
            ("app", "", true),
            ("other", "", false),
            ("!app", "", false),
            ("!other", "", true),
            ("app=web", "", true),
            ("app==web,example.org/tier=front", "", true),
            ("app=web,example.org/tier=back", "", false),
            ("app!=web", "", false),
            ("other!=web", "", true),
            ("app in (db, web)", "", true),
            ("app notin (db,web),!other", "", false),
            ("other notin (db)", "", true),
            ("", "metadata.name=a,metadata.namespace==b", true),
            ("", "metadata.name!=a", false),
            ("app=web", "metadata.name=c", false),
            ("", "spec.type=ClusterIP,spec.clusterIP!=None", true),
            ("", "spec.type!=ClusterIP", false),
        ] {
            let selector = Selector::parse(labels, fields, Resource::SERVICES.fields).unwrap();
            assert_eq!(selector.matches(&object), expected, "{labels} {fields}");
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for (labels, fields) in
            [("a b", ""), ("app of (a)", ""), ("=a", ""), ("", "name"), ("", "spec.ports=1")]
        {
            assert_eq!(
                Selector::parse(labels, fields, Resource::SERVICES.fields).unwrap_err().code(),
                400,
                "{labels} {fields}"
            );
        }
    }
}
