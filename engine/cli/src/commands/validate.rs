//! `homelab validate`

use homelab_config::Problem;
use homelab_model::Cluster;
use serde_json::json;

use super::{DONE, FAILED, output};
use crate::args::{Format, Global};
use crate::error::CliError;
use crate::input;
use crate::render::page::{Page, line};
use crate::render::{Shown, count};
use crate::terminal::Terminal;

pub(crate) fn run(global: &Global, terminal: &Terminal) -> Result<u8, CliError> {
    let loaded = input::cluster(&global.files);
    let list = |problems: &[Problem]| problems.iter().map(Problem::json).collect::<Vec<_>>();
    let (value, code) = match &loaded {
        Ok(loaded) => {
            let value = json!({
                "valid": true,
                "problems": list(&loaded.warnings),
                "cluster": loaded.cluster,
            });
            (value, DONE)
        }
        Err(CliError::Config(problems)) => (json!({"valid": false, "problems": list(&problems.0)}), FAILED),
        Err(_) => return loaded.map(|_| DONE),
    };
    output::into(global, &value)?;
    if global.format == Format::Json {
        terminal.out(&Shown::json(&value))?;
        return Ok(code);
    }
    let loaded = loaded?;
    for warning in &loaded.warnings {
        terminal.problem(warning);
    }
    let mut page = Page::new(terminal.paint);
    line!(page, format!("{} is valid: {}", global.files.join(" + "), words(&loaded.cluster)));
    terminal.out(&page.end())?;
    Ok(code)
}

fn words(cluster: &Cluster) -> String {
    let ranges: Vec<String> = cluster.network.pod_cidrs.iter().map(ToString::to_string).collect();
    format!(
        "cluster {}, {}, pods {}, {}, {}.",
        cluster.name,
        count(cluster.nodes.len(), "node"),
        ranges.join(" and "),
        count(cluster.load_balancer.pools.len(), "pool"),
        count(cluster.services.len(), "service")
    )
}
