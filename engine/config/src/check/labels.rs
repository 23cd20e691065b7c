//! Labels, annotations and selectors: Kubernetes' syntax (`apimachinery` validation of labels and label selectors).

use homelab_model::{Labels, Operator, Requirement, Selector};

use super::take;
use crate::problem::Fault;
use crate::raw;
use crate::spanned::{Spanned, Texts};
use crate::value::{label_value, qualified};

/// Labels; those that are wrong are told and left out.
pub(super) fn labels(texts: Option<&Texts>, faults: &mut Vec<Fault>) -> Labels {
    let mut labels = Labels::new();
    for (key, value) in texts.into_iter().flat_map(|t| &t.0) {
        let (good, text) = (take(faults, key, qualified), take(faults, value, label_value));
        if let (Some(key), Some(value)) = (good, text) {
            labels.insert(key.value, value.value);
        }
    }
    labels
}

/// Selectors; `key` names them, `all` is what is chosen where there are none.
pub(super) fn selectors(
    list: Option<&Vec<Spanned<raw::Selector>>>,
    key: &str,
    all: &str,
    faults: &mut Vec<Fault>,
) -> Vec<Selector> {
    let empty = |faults: &mut Vec<Fault>, item: &Spanned<raw::Selector>| {
        faults.push(
            Fault::new("selector", item.span, format!("an empty selector chooses {all}"))
                .help(format!("leave `{key}` out for {all}, or write `matchLabels` or `matchExpressions`")),
        );
    };
    let mut selectors = Vec::new();
    for item in list.into_iter().flatten() {
        let before = faults.len();
        let selector = selector(&item.value, faults);
        if selector == Selector::default() && faults.len() == before {
            empty(faults, item);
        }
        selectors.push(selector);
    }
    selectors
}

/// A selector; what is wrong in it is told and left out.
pub(super) fn selector(raw: &raw::Selector, faults: &mut Vec<Fault>) -> Selector {
    let match_labels = labels(raw.match_labels.as_ref(), faults);
    let mut match_expressions = Vec::new();
    for item in raw.match_expressions.iter().flatten() {
        let raw = &item.value;
        let (Some(key), Some(operator)) = (&raw.key, &raw.operator) else { continue };
        let key = take(faults, key, qualified);
        let values: Vec<Spanned<String>> =
            raw.values.iter().flatten().filter_map(|v| take(faults, v, label_value)).collect();
        let written = raw.values.as_deref().unwrap_or_default();
        let (kind, wants) = match operator.value.as_str() {
            "In" => (Operator::In, true),
            "NotIn" => (Operator::NotIn, true),
            "Exists" => (Operator::Exists, false),
            _ => (Operator::DoesNotExist, false),
        };
        if wants && written.is_empty() {
            faults.push(
                Fault::new("selector", operator.span, format!("`{}` needs `values`", operator.value))
                    .help("list them, e.g. `values: [attic, cellar]`"),
            );
        }
        if let Some(first) = written.first().filter(|_| !wants) {
            faults.push(
                Fault::new("selector", first.span, format!("`{}` has no `values`", operator.value))
                    .help("take them away, or write `In` or `NotIn`"),
            );
        }
        let Some(key) = key else { continue };
        let values = values.into_iter().map(|v| v.value).collect();
        match_expressions.push(Requirement { key: key.value, operator: kind, values });
    }
    Selector { match_labels, match_expressions }
}
