//! What a request asks for after the `?`.

use percent_encoding::percent_decode_str;

use crate::select::Selector;
use crate::{Failure, Resource};

/// The parameters that have a meaning here; others are passed over, as Kubernetes does.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) selector: Selector,
    pub(crate) watch: bool,
    /// None: not said, which is not the same as 0.
    pub(crate) version: Option<u64>,
    /// A list of exactly that version.
    pub(crate) exact: bool,
    pub(crate) bookmarks: bool,
    /// Whether a watch begins with what there is; None leaves it to the version.
    pub(crate) initial: Option<bool>,
    /// When a watch ends, seconds.
    pub(crate) timeout: Option<u64>,
    /// Who applies.
    pub(crate) manager: String,
    /// Whether what others manage is taken.
    pub(crate) force: bool,
}

impl Query {
    pub(crate) fn parse(text: &str, resource: &Resource) -> Result<Query, Failure> {
        let mut query = Query::default();
        let (mut labels, mut fields, mut matching) = (String::new(), String::new(), String::new());
        let mut initial = None;
        for pair in text.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = value.replace('+', " ");
            let value = percent_decode_str(&value).decode_utf8_lossy().into_owned();
            let number = || {
                value
                    .parse()
                    .map_err(|_| Failure::BadRequest(format!("invalid {key}: {value:?} is no number")))
            };
            match key {
                "labelSelector" => labels = value,
                "fieldSelector" => fields = value,
                "watch" => query.watch = truth(&value),
                "allowWatchBookmarks" => query.bookmarks = truth(&value),
                "sendInitialEvents" => initial = Some(truth(&value)),
                "resourceVersion" if !value.is_empty() => query.version = Some(number()?),
                "resourceVersionMatch" => matching = value,
                "fieldManager" => query.manager = value,
                "force" => query.force = truth(&value),
                "timeoutSeconds" => query.timeout = Some(number()?),
                _ => {}
            }
        }
        query.selector = Selector::parse(&labels, &fields, resource.fields)?;
        query.initial = initial;
        query.exact = matching == "Exact";
        let forbidden = match (query.watch, initial, matching.as_str()) {
            (true, Some(_), "NotOlderThan") | (_, None, "") => None,
            (false, None, "Exact" | "NotOlderThan") => query.version.is_none().then_some(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            ),
            (false, None, _) => Some("resourceVersionMatch: Unsupported value"),
            (false, Some(_), _) => {
                Some("sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list")
            }
            (true, Some(_), _) => Some(
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ),
            (true, None, _) => Some(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ),
        };
        match forbidden {
            None => Ok(query),
            Some(why) => Err(Failure::Invalid(format!("ListOptions.meta.k8s.io \"\" is invalid: {why}"))),
        }
    }
}

/// A parameter without a value is true, too.
fn truth(value: &str) -> bool {
    !matches!(value, "0" | "false")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Query, Failure> {
        Query::parse(text, &Resource::CONFIG_MAPS)
    }

    #[test]
    fn parameters_are_decoded() {
        let query = parse(
            "labelSelector=%21a%2Cb+in+%28c%29&watch=true&allowWatchBookmarks=1&resourceVersion=7&timeoutSeconds=60&x=y",
        );
        let expected = Query {
            selector: Selector::parse("!a,b in (c)", "", &[]).unwrap(),
            watch: true,
            version: Some(7),
            bookmarks: true,
            timeout: Some(60),
            ..Query::default()
        };
        assert_eq!(query, Ok(expected));
        assert_eq!(parse("watch=false&resourceVersion="), Ok(Query::default()));
    }

    #[test]
    fn parameters_that_contradict_each_other_are_refused() {
        for (text, code) in [
            ("resourceVersion=x", 400),
            ("resourceVersionMatch=Exact", 422),
            ("resourceVersionMatch=About&resourceVersion=1", 422),
            ("sendInitialEvents=true", 422),
            ("watch=1&sendInitialEvents=true", 422),
            ("watch=1&resourceVersionMatch=NotOlderThan", 422),
        ] {
            assert_eq!(parse(text).unwrap_err().code(), code, "{text}");
        }
        let initial = parse("watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan").unwrap();
        assert!(initial.initial == Some(true) && !initial.exact);
    }
}
