//! How far a restore has come: a bar on a terminal, elsewhere a line now and then.

use crate::restore::{Now, Progress};
use indicatif::{BinaryBytes, HumanDuration, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the bar on a terminal is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(200);
/// How often a look is taken elsewhere, and how many of them make a line.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOKS_A_LINE: u32 = 10;

/// Shows progress until it is dropped.
pub(super) async fn show(progress: Arc<Progress>) {
    if std::io::stderr().is_terminal() { draw(&progress).await } else { write(&progress).await }
}

async fn draw(progress: &Progress) {
    let style =
        ProgressStyle::with_template("{msg} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style);
    let mut ticks = tokio::time::interval(DRAW_EVERY);
    let mut seen = (0, 0);
    loop {
        ticks.tick().await;
        let now = progress.now();
        if begins_anew(&mut seen, &now) {
            // Otherwise the pace of one step would be taken for that of the next one.
            bar.reset();
        }
        bar.set_message(now.doing);
        bar.set_length(now.total);
        bar.set_position(now.done);
    }
}

async fn write(progress: &Progress) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    let (mut seen, mut begun, mut done_before, mut looks) = ((0, 0), Instant::now(), 0, 0);
    loop {
        ticks.tick().await;
        let now = progress.now();
        if begins_anew(&mut seen, &now) {
            (begun, done_before) = (Instant::now(), now.done);
        }
        looks += 1;
        if looks % LOOKS_A_LINE == 0
            && let Some(pace) = pace(now.done.saturating_sub(done_before), begun.elapsed())
        {
            tracing::info!("{}: {}", now.doing, line(now.done, now.total, pace));
        }
    }
}

/// Whether a step begins, or is begun anew from its first byte. `seen` is the step and what was
/// done of it when somebody looked last.
fn begins_anew(seen: &mut (u64, u64), now: &Now) -> bool {
    let (step, done) = std::mem::replace(seen, (now.step, now.done));
    step != now.step || done > now.done
}

/// Bytes a second, once there is something to tell it by.
fn pace(done: u64, time: Duration) -> Option<f64> {
    (time >= Duration::from_secs(1)).then(|| done as f64 / time.as_secs_f64())
}

/// `1.20 GiB of 3.40 GiB, 45.00 MiB/s, 50 seconds left`
fn line(done: u64, total: u64, pace: f64) -> String {
    let mut text =
        format!("{} of {}, {}/s", BinaryBytes(done), BinaryBytes(total), BinaryBytes(pace as u64));
    let left = total.saturating_sub(done) as f64 / pace;
    if let Ok(left) = Duration::try_from_secs_f64(left.ceil()) {
        text.push_str(&format!(", {} left", HumanDuration(left)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_bytes_pace_and_time_left() {
        let mib = 1 << 20;
        let pace = pace(100 * mib, Duration::from_secs(10)).unwrap();
        assert_eq!(
            line(100 * mib, 2048 * mib, pace),
            "100.00 MiB of 2.00 GiB, 10.00 MiB/s, 3 minutes left"
        );
        assert_eq!(
            line(5 * mib, 5 * mib, pace),
            "5.00 MiB of 5.00 MiB, 10.00 MiB/s, 0 seconds left"
        );
    }

    #[test]
    fn the_pace_is_that_of_the_attempt_that_goes_on() {
        let now = |step, done| Now { step, doing: String::new(), done, total: 100 };
        let mut seen = (1, 40);
        assert!(!begins_anew(&mut seen, &now(1, 40)) && !begins_anew(&mut seen, &now(1, 50)));
        assert!(begins_anew(&mut seen, &now(1, 10)) && !begins_anew(&mut seen, &now(1, 60)));
        assert!(begins_anew(&mut seen, &now(2, 60)));
    }

    #[test]
    fn nothing_is_said_of_the_time_left_when_nothing_moves() {
        assert_eq!(line(0, 100, 0.0), "0 B of 100 B, 0 B/s");
        assert_eq!(pace(100, Duration::from_millis(10)), None);
    }
}
