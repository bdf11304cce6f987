//! Just enough of ELF to see whether a binary needs a dynamic loader.

use anyhow::{Context as _, Result, bail};

const PT_INTERP: u32 = 3;
const ELF64_LITTLE_ENDIAN: [u8; 6] = *b"\x7fELF\x02\x01";

/// Whether no dynamic loader is named, so that the binary runs where there is no libc.
pub fn is_static(file: &[u8]) -> Result<bool> {
    if !file.starts_with(&ELF64_LITTLE_ENDIAN) {
        bail!("not a 64-bit little-endian ELF file");
    }
    let table = usize::try_from(u64::from_le_bytes(bytes(file, 32)?))?;
    let entry_size = usize::from(u16::from_le_bytes(bytes(file, 54)?));
    let entries = usize::from(u16::from_le_bytes(bytes(file, 56)?));
    for index in 0..entries {
        let entry = table.checked_add(index * entry_size);
        let entry = entry.context("a program header lies outside of the file")?;
        if u32::from_le_bytes(bytes(file, entry)?) == PT_INTERP {
            return Ok(false);
        }
    }
    Ok(true)
}

fn bytes<const N: usize>(file: &[u8], offset: usize) -> Result<[u8; N]> {
    let field = file
        .get(offset..)
        .and_then(<[u8]>::first_chunk)
        .with_context(|| format!("the ELF file ends before byte {offset}"))?;
    Ok(*field)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of 64 bytes, followed by program headers of 56 bytes of the given types.
    fn elf(types: &[u32]) -> Vec<u8> {
        let mut file = ELF64_LITTLE_ENDIAN.to_vec();
        file.resize(64, 0);
        file[32] = 64;
        file[54] = 56;
        file[56] = u8::try_from(types.len()).expect("few headers");
        for kind in types {
            file.extend(kind.to_le_bytes());
            file.extend([0; 52]);
        }
        file
    }

    #[test]
    fn an_interpreter_means_dynamic() -> Result<()> {
        assert!(is_static(&elf(&[1, 2, 6]))?);
        assert!(is_static(&elf(&[]))?);
        assert!(!is_static(&elf(&[6, 3, 1]))?);
        Ok(())
    }

    #[test]
    fn refuses_other_files() {
        let whole = elf(&[1, 3]);
        assert!(is_static(b"#!/bin/sh").is_err());
        assert!(is_static(&whole[..40]).is_err());
        assert!(is_static(&whole[..100]).is_err());
    }

    #[test]
    fn cargo_made_this_test_dynamic() -> Result<()> {
        let this = std::fs::read(std::env::current_exe()?)?;
        assert_eq!(is_static(&this)?, cfg!(target_feature = "crt-static"));
        Ok(())
    }
}
