//! What is said of limits: which ended or held back the run, and the report of `--cgroup-report`.

use sbx::launch::{Exit, Usage};
use sbx::plan::Plan;
use sbx::spec::text::shown_size;
use serde_json::{Value, json};

/// Held back for less than this, nobody has to be told.
const WORTH_TELLING_US: u64 = 100_000;

/// The status lines of the start: one for each limit, with who enforces it.
pub fn enforced(plan: &Plan) -> Vec<Value> {
    let line = |limit| json!({ "limit": limit });
    plan.limits().enforced.iter().map(line).collect()
}

/// What a limit has done: a sentence, and the fields of its status line.
pub struct Effect {
    pub text: String,
    pub line: Value,
}

/// What the limits have done to this run, the gravest first.
pub fn effects(plan: &Plan, exit: &Exit) -> Vec<Effect> {
    let mut found = Vec::new();
    let value = |option: &str| {
        let enforced = plan.limits().enforced.iter().find(|limit| limit.option == option);
        enforced.map(|limit| limit.value.clone()).unwrap_or_default()
    };
    if let Some(reached) = &exit.limit {
        found.push(Effect {
            text: format!(
                "killed by the memory limit ({}); the peak was {}",
                shown_size(reached.value),
                shown_size(reached.peak)
            ),
            line: json!({
                "option": reached.option, "value": value(reached.option), "event": "killed", "peak": reached.peak,
            }),
        });
    }
    let Some(usage) = &exit.usage else { return found };
    if usage.pids_refused > 0 {
        let peak = usage.pids_peak;
        found.push(Effect {
            text: format!(
                "the limit of {} processes has refused {} more (--pids)",
                value("pids"),
                usage.pids_refused
            ),
            line: json!({ "option": "pids", "value": value("pids"), "event": "refused", "count": usage.pids_refused, "peak": peak }),
        });
    }
    if let Some((us, periods)) = usage.throttled.filter(|(us, _)| *us > 0) {
        let text = match us {
            us if us < WORTH_TELLING_US => String::new(),
            us => format!("held back for {} s by the limit of {} processors (--cpus)", seconds(us), value("cpus")),
        };
        let line = json!({ "option": "cpus", "value": value("cpus"), "event": "throttled", "seconds": us as f64 / 1e6, "periods": periods });
        found.push(Effect { text, line });
    }
    found
}

fn seconds(us: u64) -> String {
    format!("{:.2}", us as f64 / 1e6)
}

/// The lines of `--cgroup-report`. What was not counted is not there.
pub fn report(plan: &Plan, usage: Option<&Usage>) -> Vec<String> {
    let Some(usage) = usage else {
        let why = match plan.limits().is_grouped() {
            true => "systemd has taken the cgroup away before it could be read",
            false => "without a cgroup nothing was counted",
        };
        return vec![format!("--cgroup-report: {why}")];
    };
    lines(usage)
}

fn lines(usage: &Usage) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = |name: &str, text: Option<String>| lines.extend(text.map(|text| format!("{name:<9} {text}")));
    line("memory", usage.memory_peak.map(|peak| format!("{} at most", shown_size(peak))));
    line("cpu", usage.cpu_us.map(|us| format!("{} s", seconds(us))));
    line("throttled", usage.throttled.map(|(us, periods)| format!("{} s in {periods} periods", seconds(us))));
    line("pids", usage.pids_peak.map(|peak| format!("{peak} at most, sbx's init included")));
    line("io", usage.io.map(|(read, written)| format!("{} read, {} written", shown_size(read), shown_size(written))));
    let waited = ["cpu", "memory", "io"].into_iter().zip(usage.pressure);
    let waited: Vec<String> = waited.filter_map(|(name, us)| Some(format!("{name} {} s", seconds(us?)))).collect();
    line("pressure", (!waited.is_empty()).then(|| waited.join(", ")));
    lines
}

/// What was used, as the field of the last status line.
pub fn as_json(usage: &Usage) -> Value {
    let [cpu, memory, io] = usage.pressure.map(|us| us.map(|us| us as f64 / 1e6));
    json!({
        "memory_peak": usage.memory_peak,
        "pids_peak": usage.pids_peak,
        "cpu_seconds": usage.cpu_us.map(|us| us as f64 / 1e6),
        "throttled_seconds": usage.throttled.map(|(us, _)| us as f64 / 1e6),
        "io_read": usage.io.map(|(read, _)| read),
        "io_written": usage.io.map(|(_, written)| written),
        "pressure_seconds": { "cpu": cpu, "memory": memory, "io": io },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_leaves_out_what_was_not_counted() {
        let usage = Usage { memory_peak: Some(64 << 20), cpu_us: Some(1_230_000), ..Usage::default() };
        assert_eq!(lines(&usage), ["memory    64M at most", "cpu       1.23 s"]);
    }
}
