//! What an ELF file says of how it is loaded.

/// Whether this ELF file runs without a dynamic loader: it has no `PT_INTERP` program header.
pub(crate) fn check_static(elf: &[u8]) -> Result<(), String> {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, width: usize| -> Option<usize> {
        let bytes = elf.get(at..at + width)?;
        Some(bytes.iter().rev().fold(0, |sum, &b| sum << 8 | usize::from(b)))
    };
    let kind = (elf.get(..4), elf.get(4), elf.get(5));
    // Little-endian ELF; offsets of elf(5).
    let (table, size, count) = match kind {
        (Some(b"\x7fELF"), Some(2), Some(1)) => (number(32, 8), number(54, 2), number(56, 2)),
        (Some(b"\x7fELF"), Some(1), Some(1)) => (number(28, 4), number(42, 2), number(44, 2)),
        _ => return Err("no little-endian ELF file".to_owned()),
    };
    let (Some(table), Some(size), Some(count)) = (table, size, count) else {
        return Err("a cut-off ELF file".to_owned());
    };
    let interpreted = (0..count).any(|i| number(table + i * size, 4) == Some(PT_INTERP as usize));
    if interpreted { Err("needs a dynamic loader".to_owned()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_is_not_static() {
        let me = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(check_static(&me), Err("needs a dynamic loader".to_owned()));
        assert!(check_static(b"#!/bin/sh").is_err());
        assert!(check_static(&me[..40]).is_err());
    }
}
