//! What the UDP hooks cost a tight loop, by the wall clock: with the tracepoint's dispatch, which statistics leave out.

use std::{thread, time::Duration};

use anyhow::Result;
use siskin_tests::agent::Agent;

use crate::{
    empty::{Empty, UDP},
    load::{
        generators::Generators,
        job::{Count, Job, Sizes, Work},
        network::Network,
    },
    probes::{ON_TRACEPOINTS, Options, SAMPLED, SKIPPED},
    progress,
    reading::Reading,
    stats::{median, spread},
    table::Table,
};

/// What is attached.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Nothing,
    Empty,
    Skipped,
    Sampled,
}

const STATES: [State; 4] = [State::Nothing, State::Empty, State::Skipped, State::Sampled];

/// Time for the agent to come to rest after its start.
const REST: Duration = Duration::from_millis(1500);
const PROGRAMS: [&str; 2] = ["udp_send", "udp_receive"];

/// What a round found: nanoseconds per datagram sent and received in each state, and what the agent's meter says of a
/// run in the last two.
struct Round {
    ns: [f64; STATES.len()],
    meter_ns: [f64; STATES.len()],
}

/// Measures and reports.
pub fn measure(options: &Options, network: &Network) -> Result<String> {
    let mut rounds = Vec::new();
    for index in 0..options.rounds {
        let mut round = Round { ns: [f64::NAN; 4], meter_ns: [f64::NAN; 4] };
        for turn in 0..STATES.len() {
            let place = (turn + index) % STATES.len();
            (round.ns[place], round.meter_ns[place]) = state(STATES[place], options, network)?;
        }
        let [nothing, empty, skipped, sampled] = round.ns;
        progress(&format!(
            "round {} of {}, ns per send and receive: {nothing:.0} bare, {empty:.0} with empty programs, \
             {skipped:.0} skipped, {sampled:.0} sampled",
            index + 1,
            options.rounds
        ));
        rounds.push(round);
    }
    Ok(report(&rounds, options))
}

fn state(state: State, options: &Options, network: &Network) -> Result<(f64, f64)> {
    let _empty = match state {
        State::Empty => Some(Empty::attach(&options.empty_object, &UDP)?),
        _ => None,
    };
    let agent = match state {
        State::Skipped => Some(Agent::start(&[SKIPPED, ON_TRACEPOINTS])),
        State::Sampled => Some(Agent::start(&[SAMPLED, ON_TRACEPOINTS])),
        _ => None,
    };
    thread::sleep(if agent.is_some() { REST } else { Duration::from_millis(100) });
    // The last CPU: interrupts like the first.
    let cpu = thread::available_parallelism().map_or(0, |cpus| usize::from(cpus) - 1);
    let job = Job::full(Work::Udp { sizes: Sizes::Same });
    let generators = Generators::start(network, &[job], &[cpu]);
    thread::sleep(Duration::from_millis(200));
    let read = || agent.as_ref().map(Reading::take).transpose();
    let before = read()?;
    let per_second = generators.rate(Count::Datagrams, Duration::from_secs_f64(options.seconds));
    let after = read()?;
    generators.finish()?;
    let mut meter_ns = f64::NAN;
    if let (Some(before), Some(after)) = (before, after) {
        let sum = |of: fn(f64, f64) -> f64| {
            let difference = |program: &&str| {
                let (before, after) = (before.by_meter(program), after.by_meter(program));
                of(after.ns - before.ns, after.runs - before.runs)
            };
            PROGRAMS.iter().map(difference).sum::<f64>()
        };
        meter_ns = sum(|ns, _| ns) / sum(|_, runs| runs);
    }
    if let Some(agent) = agent {
        agent.stop(libc::SIGTERM);
    }
    // A datagram is counted when it is sent and when it is received.
    Ok((2e9 / per_second, meter_ns))
}

fn report(rounds: &[Round], options: &Options) -> String {
    let all = |of: &dyn Fn(&Round) -> f64| rounds.iter().map(of).collect::<Vec<_>>();
    let per_run = |place: usize| all(&|round| (round.ns[place] - round.ns[0]) / 2.0);
    let mut table = Table::new(&[
        "attached",
        "ns per send and receive",
        "ns per run above nothing",
        "ratio to empty",
        "meter, ns per run",
    ]);
    let names = ["nothing", "empty programs", "siskin, skipped", "siskin, sampled"];
    for (place, name) in names.iter().enumerate() {
        let above = if place == 0 { "-".to_owned() } else { spread(&per_run(place), 0) };
        let meter = spread(&all(&|round| round.meter_ns[place]), 0);
        let ratio = match place {
            0 | 1 => "-".to_owned(),
            _ => format!("{:.1}", median(&per_run(place)) / median(&per_run(1))),
        };
        table.row([(*name).to_owned(), spread(&all(&|round| round.ns[place]), 0), above, ratio, meter]);
    }
    let meter = |place: usize| spread(&all(&|round| round.meter_ns[place]), 0);
    format!(
        "### By the wall clock: UDP\n\nOne thread on one CPU sends a datagram to itself and receives it: two runs. Median \
         (quartiles) of {} interleaved rounds of {} s, statistics off. What is above nothing includes the \
         tracepoint's dispatch. The meter is the agent's own: each program times a few of its runs, and a constant is \
         added for the dispatch.\n\n{table}\n\
         - A skipped run takes {} ns; the meter says {}.\n\
         - A sampled run takes {} ns; the meter says {}.\n\
         - Dispatch and an empty program take {} ns.\n",
        rounds.len(),
        options.seconds,
        spread(&per_run(2), 0),
        meter(2),
        spread(&per_run(3), 0),
        meter(3),
        spread(&per_run(1), 0),
    )
}
