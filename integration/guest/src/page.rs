//! The pages of memory that the guest keeps. Each page has its number and generation, from which every word follows, so
//! a stale, swapped or damaged page is told apart from the right one.

use crate::{STEP, scatter};

/// Words in a page of 4 KiB.
pub const WORDS: usize = 512;

fn seed(number: u64, generation: u64) -> u64 {
    scatter(number ^ scatter(generation))
}

/// Writes a page. Pages are [`WORDS`] long.
pub fn fill(page: &mut [u64], number: u64, generation: u64) {
    let mut value = seed(number, generation);
    for word in page.iter_mut() {
        *word = value;
        value = value.wrapping_add(STEP);
    }
    if let [first, second, ..] = page {
        *first = number;
        *second = generation;
    }
}

/// Checks a page, which must hold exactly this number and this generation.
///
/// # Errors
/// One sentence on the content that the page has instead.
pub fn check(page: &[u64], number: u64, generation: u64) -> Result<(), String> {
    let [found_number, found_generation, rest @ ..] = page else {
        return Err("too short for a page".to_owned());
    };
    if (*found_number, *found_generation) != (number, generation) {
        return Err(format!(
            "page {number} at generation {generation} holds page {found_number} at generation {found_generation}"
        ));
    }
    let mut value = seed(number, generation).wrapping_add(STEP.wrapping_mul(2));
    for (index, word) in rest.iter().enumerate() {
        if *word != value {
            return Err(format!("page {number} at generation {generation}: word {} is {word:#x}", index + 2));
        }
        value = value.wrapping_add(STEP);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_page_asked_for_passes() {
        let mut page = vec![0; WORDS];
        fill(&mut page, 7, 3);
        assert_eq!(check(&page, 7, 3), Ok(()));
        assert!(check(&page, 7, 4).is_err_and(|text| text.contains("generation 3")));
        assert!(check(&page, 8, 3).is_err());
        page[WORDS - 1] ^= 1;
        assert!(check(&page, 7, 3).is_err_and(|text| text.contains("word 511")));
        assert!(check(&[0; WORDS], 7, 3).is_err());
    }
}
