//! Maps values to a length of paper, and finds the ticks that people read easily.

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// From 0 to a little above the largest value.
    Linear,
    /// Decades.
    Log,
    /// Shares of 0 to 1 by what is left above them: every nine is as wide as the one before.
    Nines,
}

/// A scale over the values it has to show.
#[derive(Clone, Debug)]
pub struct Axis {
    scale: Scale,
    from: f64,
    to: f64,
    pub ticks: Vec<Tick>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    pub value: f64,
    pub label: String,
}

impl Axis {
    pub fn over(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        // The share 1 has no place among the nines; `place` puts it at the end of the axis.
        let shown = |value: &f64| value.is_finite() && (scale != Scale::Nines || *value < 1.0);
        let (least, most) = values
            .filter(shown)
            .fold((f64::MAX, 0.0_f64), |(least, most), value| (least.min(value), most.max(value)));
        match scale {
            Scale::Linear => Self::linear(most.max(f64::MIN_POSITIVE)),
            Scale::Log => Self::log(least.clamp(1e-3, 1e12), most.max(1e-3)),
            Scale::Nines => Self::nines(most),
        }
    }

    fn linear(most: f64) -> Self {
        let rough = most / 5.0;
        let decade = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0]
            .iter()
            .map(|factor| factor * decade)
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        let count = (most / step).ceil().max(1.0) as u32;
        let ticks = (0..=count).map(|nth| Tick::at(f64::from(nth) * step)).collect();
        Self { scale: Scale::Linear, from: 0.0, to: f64::from(count) * step, ticks }
    }

    fn log(least: f64, most: f64) -> Self {
        let first = least.log10().floor() as i32;
        let last = (most.log10().ceil() as i32).max(first + 1);
        let ticks = (first..=last).map(|power| Tick::at(10_f64.powi(power))).collect();
        Self { scale: Scale::Log, from: f64::from(first), to: f64::from(last), ticks }
    }

    fn nines(most: f64) -> Self {
        let last = (-(1.0 - most).log10()).ceil().clamp(1.0, 5.0);
        let labels = ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"];
        let ticks = labels
            .iter()
            .zip(0..=last as i32)
            .map(|(label, power)| Tick { value: 1.0 - 10_f64.powi(-power), label: (*label).to_owned() })
            .collect();
        Self { scale: Scale::Nines, from: 0.0, to: last, ticks }
    }

    /// 0 at the start of the axis, 1 at its end.
    pub fn place(&self, value: f64) -> f64 {
        let position = match self.scale {
            Scale::Linear => value,
            Scale::Log => value.max(1e-3).log10(),
            Scale::Nines => -(1.0 - value).max(1e-9).log10(),
        };
        ((position - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
    }
}

impl Tick {
    fn at(value: f64) -> Self {
        Self { value, label: grouped(value) }
    }
}

/// `12,000`, `2.5`, `0.01`.
pub fn grouped(value: f64) -> String {
    if value < 1_000.0 {
        return format!("{}", (value * 1e6).round() / 1e6);
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|tick| tick.label.as_str()).collect()
    }

    #[test]
    fn linear_ticks_are_round_and_reach_the_largest_value() {
        let axis = Axis::over(Scale::Linear, [3.0, 8_000.0].into_iter());
        assert_eq!(labels(&axis), ["0", "2,000", "4,000", "6,000", "8,000"]);
        assert_eq!((axis.place(0.0), axis.place(4_000.0), axis.place(8_000.0)), (0.0, 0.5, 1.0));
    }

    #[test]
    fn log_ticks_are_decades() {
        let axis = Axis::over(Scale::Log, [50.0, 4_000.0].into_iter());
        assert_eq!(labels(&axis), ["10", "100", "1,000", "10,000"]);
        assert!((axis.place(100.0) - 1.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn nines_are_equally_wide() {
        let axis = Axis::over(Scale::Nines, [0.0, 0.999, 1.0].into_iter());
        assert_eq!(labels(&axis), ["0 %", "90 %", "99 %", "99.9 %"]);
        assert!((axis.place(0.99) - 2.0 / 3.0).abs() < 1e-9);
        assert_eq!(axis.place(1.0), 1.0);
    }

    #[test]
    fn an_axis_without_values_is_still_an_axis() {
        for scale in [Scale::Linear, Scale::Log, Scale::Nines] {
            let axis = Axis::over(scale, std::iter::empty());
            assert!(axis.place(1.0).is_finite() && axis.ticks.len() > 1, "{scale:?}");
        }
    }
}
