// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is in the file and has no effect.

use std::{collections::HashSet, net::Ipv4Addr};

use super::{decode::Report, gateway::InstanceIp, rules::Used, schema::File, validate::Objects};

/// Warns of frontends and pools that are in the file and have no effect.
pub(super) fn warn_unused(
    file: &File,
    objects: &Objects,
    used: &Used,
    instance_ips: &[InstanceIp],
    report: &mut Report,
) {
    if file.rules.is_empty() && file.default.is_none() {
        if instance_ips.is_empty() {
            report
                .warning(0..0, "no outbound rule: nothing is translated")
                .help("add an `[[outbound_rule]]` with a pool and frontends");
        }
        return;
    }
    for (index, frontend) in objects.frontends.iter().enumerate() {
        if !used.frontends.contains(&index) && !frontend.name.is_empty() {
            let message = format!("frontend `{}` is not used by any outbound rule", frontend.name);
            report
                .warning(objects.frontend_names[index].clone(), message)
                .help("name it in `frontends`, or remove it");
        }
    }
    if file.default.is_some() {
        return;
    }
    let own: HashSet<Ipv4Addr> = instance_ips.iter().map(|instance| instance.backend).collect();
    for (index, pool) in objects.pools.iter().enumerate() {
        let elsewhere = pool.backends.iter().all(|backend| own.contains(&backend.address));
        if !used.pools.contains(&index) && !pool.name.is_empty() && !elsewhere {
            let message = format!("pool `{}` is not used by any outbound rule", pool.name);
            report
                .warning(objects.pool_names[index].clone(), message)
                .help("its backends get no ports from it: name it in an `[[outbound_rule]]`, or remove it");
        }
    }
}
