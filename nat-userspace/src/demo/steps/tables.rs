// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the operator sees, and the books balanced.

use anyhow::Result;

use super::Demo;

/// Shows the tables.
pub(in crate::demo) fn show(demo: &mut Demo<'_>) -> Result<()> {
    demo.say.step("What the operator sees")?;
    for words in [["flows", "--limit", "12"].as_slice(), &["ports"], &["stats"]] {
        demo.gateway.show(&demo.say, words)?;
    }
    Ok(())
}

/// Checks the books: verdicts against packets, and the outside wire.
pub(in crate::demo) fn audit(demo: &mut Demo<'_>) -> Result<()> {
    demo.say.step("The books")?;
    let stats = demo.gateway.json(&["stats"])?;
    let verdicts = stats["verdicts"].as_object();
    let sum: u64 = verdicts.into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
    let seen = stats["packets_seen"].as_u64().unwrap_or_default();
    let claim = format!("every packet got exactly one verdict: {sum} verdicts, {seen} packets");
    let balanced = stats["integrity"]["consistent"] == true && seen > 0;
    demo.say.claim(balanced, &claim, || stats["integrity"].to_string())?;
    let (private, frontend) = demo.world.wire()?;
    let claim = format!(
        "at the router, since before the gateway started: {frontend} packets from frontend addresses (segments that \
         GRO merged count once), {private} with a private source"
    );
    demo.say.claim(private == 0 && frontend > 0, &claim, || format!("{private} leaked"))
}
