// SPDX-License-Identifier: MIT OR Apache-2.0
//! Configuration: a TOML file in, a checked [`Gateway`] out.
//!
//! [`load`] is all there is to it: what it accepts can be planned ([`crate::plan::plan`]) and loaded. Errors are
//! collected, not only the first is reported; each points at the text it is about.

mod allocation;
mod claims;
mod classes;
mod decode;
mod default;
mod frontends;
mod gateway;
mod host;
mod instance;
mod limits;
mod names;
mod options;
mod policy;
mod pools;
mod ports;
mod references;
mod report;
mod rules;
mod schema;
mod selection;
#[cfg(test)]
mod tests;
mod timeouts;
mod unused;
mod validate;
mod values;

use std::{path::Path, sync::Arc};

use toml::de::DeTable;

pub use self::{
    classes::class_names,
    gateway::{
        Action, Allocation, Backend, DestinationLimit, Frontend, Gateway, HostPorts, InstanceIp, Limits,
        OutboundRule, Policy, PolicyDirection, Pool, PortRange, Precedence, Protocol, Refusal, Selection,
        XdpMode,
    },
    host::{HostFacts, keep_host_ports, taken_from_host},
    options::{Clamp, Filtering, IpId, Mapping, Options, PROTOCOLS, RstCheck, TcpReset},
    report::{ConfigError, Diagnostic, Place, Severity, Source, Warning},
    timeouts::{PortTimeout, RuleTimers},
    values::grouped,
};
use self::{
    decode::Report,
    rules::{PlacedRule, Used},
    validate::Objects,
};
use crate::plan::{self, NoFlows, PlanError};

/// Reads and checks the file at `path`.
///
/// # Errors
///
/// The file cannot be read, or something in it is wrong. [`ConfigError`]'s display is complete: every error with
/// `file:line:column`, the line, and what would be right.
pub fn load(path: &Path) -> Result<(Gateway, Vec<Warning>), ConfigError> {
    let file = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&file, text),
        Err(source) => Err(ConfigError::Read { file, source }),
    }
}

/// Checks `text`, which `file` names in messages.
///
/// # Errors
///
/// Something in it is wrong.
pub fn parse(file: &str, text: String) -> Result<(Gateway, Vec<Warning>), ConfigError> {
    let source = Arc::new(Source { file: file.to_owned(), text });
    let mut report = Report::new(Arc::clone(&source));
    let gateway = check(&source.text, &mut report);
    let (errors, warnings) = report.into_parts();
    match gateway {
        Some(gateway) if errors.is_empty() => Ok((gateway, warnings)),
        // Warnings may only follow from the errors: a misspelt reference leaves a pool unused.
        _ => Err(ConfigError::Invalid { errors }),
    }
}

fn check(text: &str, report: &mut Report) -> Option<Gateway> {
    let document = match DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let message = error.message().trim_end().replace('\n', ", ");
            let help = syntax_help(&message);
            report.error(error.span().unwrap_or(0..0), message).help(help);
            return None;
        }
    };
    let file = schema::read(&document, report);
    let gateway = file.gateway.as_ref().map(|section| validate::gateway(section, report));
    let objects = validate::objects(&file, report);
    if let Some(section) = &file.gateway {
        validate::room_for_backends(section, &objects, report);
    }
    let on_refusal = gateway.as_ref().map_or_else(Refusal::default, |gateway| gateway.on_refusal);
    let mut used = Used::default();
    let policies = policy::policies(&file, &objects, &mut used, report);
    let instance_ips = instance::instance_ips(&file, &objects, report);
    let mut placed = rules::rules(&file.rules, on_refusal, &objects, &mut used, report);
    if let Some(section) = &file.default {
        placed.extend(default::rules(
            section,
            on_refusal,
            file.rules.len(),
            &instance_ips,
            &objects,
            &mut used,
            report,
        ));
    }
    unused::warn_unused(&file, &objects, &used, &instance_ips, report);
    if report.has_errors() {
        return None;
    }
    let (rules, places): (Vec<_>, Vec<_>) =
        placed.into_iter().map(|PlacedRule { rule, ports_place }| (rule, ports_place)).unzip();
    let Objects { frontends, pools, .. } = objects;
    let gateway = Gateway { frontends, pools, rules, policies, instance_ips, ..gateway? };
    limits::check_table(&file.rules, &gateway, report);
    for error in plan_errors(&gateway) {
        let mut involved = error.rules().iter().rev();
        let last = involved.next().map_or(0..0, |rule| places[*rule].clone());
        let diagnostic = report.error(last, error.to_string());
        for rule in involved {
            diagnostic.also(places[*rule].clone(), format!("rule `{}`", gateway.rules[*rule].name));
        }
        if let Some(help) = error.help(&gateway) {
            diagnostic.help(help);
        }
    }
    Some(gateway)
}

/// Why the ports asked for cannot be given: every rule that asks too much for itself, else whatever else it is.
fn plan_errors(gateway: &Gateway) -> Vec<PlanError> {
    let errors = plan::over_committed(gateway);
    if !errors.is_empty() {
        return errors;
    }
    plan::plan(gateway, None, &NoFlows).err().into_iter().collect()
}

/// What to do about what the TOML parser says.
fn syntax_help(message: &str) -> &'static str {
    if message.starts_with("duplicate key") {
        "give each key once; a second object of the same kind starts with its own `[[…]]`"
    } else if message.starts_with("key with no value") {
        "write `key = value`"
    } else if message.contains("string") {
        "a text stands between two `\"` on one line"
    } else {
        "the file is TOML: https://toml.io/en/v1.0.0"
    }
}
