//! Joins the texts of an error and its causes; pure.

use std::error::Error;

/// Returns the texts of `error` and of all its causes on one line, outermost first, joined by `: `.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
