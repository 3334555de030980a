// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the compiled BPF object must not contain.

use anyhow::{Context as _, Result, ensure};
use nat_tests::harness;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget};

/// Loops over single bytes that the compiler calls where it does not expand a copy or a zeroing: three of them in the entry
/// program took a tenth of each packet's time (docs/performance-notes.md).
const BYTE_LOOPS: [&str; 4] = ["memset", "memcpy", "memmove", "memcmp"];

#[test]
fn nothing_goes_byte_by_byte() -> Result<()> {
    let bytes = harness::lab::object()?;
    let file = object::File::parse(bytes.as_slice()).context("parsing the BPF object")?;
    let mut relocations = 0;
    for section in file.sections() {
        for (offset, relocation) in section.relocations() {
            relocations += 1;
            let RelocationTarget::Symbol(index) = relocation.target() else { continue };
            let name = file.symbol_by_index(index)?.name()?;
            ensure!(
                !BYTE_LOOPS.contains(&name),
                "section `{}` calls `{name}` at offset {offset:#x}: `llvm-objdump -drl target/bpf/natgw.bpf.o` names the line",
                section.name()?
            );
        }
    }
    ensure!(relocations > 100, "found {relocations} relocations: this does not look like natgw's object");
    Ok(())
}
