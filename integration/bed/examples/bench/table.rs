//! The table at the end of a part.

/// The requirement of a ratio.
#[derive(Clone, Copy)]
pub(crate) enum Required {
    AtMost(f64),
    AtLeast(f64),
}

/// The rows of a table, and whether all requirements were met.
pub(crate) struct Table {
    pub(crate) met: bool,
}

impl Table {
    pub(crate) fn begin(engine: &str) -> Self {
        println!("\n{:<42} {engine:>13} {:>13} {:>8}  {:<10}", "", "yardstick", "ratio", "required");
        Self { met: true }
    }

    pub(crate) fn row(
        &mut self,
        name: &str,
        unit: &str,
        engine: f64,
        yardstick: Option<f64>,
        required: Option<Required>,
    ) {
        let figure = |value: f64| format!("{value:.1} {unit}");
        let against = yardstick.map_or_else(|| "-".to_owned(), figure);
        let ratio = yardstick.map(|yardstick| engine / yardstick);
        let verdict = match required {
            None => "-".to_owned(),
            Some(required) => {
                // A figure that is not a number meets no requirement.
                let (sign, bound, met) = match required {
                    Required::AtMost(most) => ("<=", most, ratio.is_some_and(|ratio| ratio <= most)),
                    Required::AtLeast(least) => (">=", least, ratio.is_some_and(|ratio| ratio >= least)),
                };
                self.met &= met;
                format!("{sign} {bound:.2}  {}", if met { "pass" } else { "FAIL" })
            }
        };
        let ratio = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}"));
        println!("{name:<42} {:>13} {against:>13} {ratio:>8}  {verdict}", figure(engine));
    }

    pub(crate) fn missed(&mut self, name: &str, why: &str) {
        self.met = false;
        println!("{name:<42} FAIL: not measured: {why}");
    }
}

/// The median; not a number for nothing.
pub(crate) fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = |at: usize| values.get(at).copied().unwrap_or(f64::NAN);
    (middle((values.len().max(1) - 1) / 2) + middle(values.len() / 2)) / 2.0
}
