//! An error as one line of text.

use std::error::Error;

/// An error with its causes, `: ` between them.
pub fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // A transparent error prints the same text as its cause.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Layered {
        #[error("the disk is full")]
        Bottom,
        #[error("the image cannot be written")]
        Middle(#[source] Box<Layered>),
        #[error(transparent)]
        Transparent(Box<Layered>),
    }

    #[test]
    fn each_cause_is_said_once() {
        let middle = Layered::Middle(Box::new(Layered::Bottom));
        assert_eq!(describe(&middle), "the image cannot be written: the disk is full");
        assert_eq!(describe(&Layered::Transparent(Box::new(middle))), "the image cannot be written: the disk is full");
    }
}
