//! What expressions read, by their syntax tree.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow};
use promql_parser::parser::{self, BinaryExpr, Expr, token};

/// What Grafana puts in for a variable, and what the tests do. Longer names come first: some begin with others.
const VARIABLES: [(&str, &str); 8] = [
    ("$__rate_interval", "20s"),
    ("$__interval", "5s"),
    ("$__range", "1m"),
    ("$namespace", ".*"),
    ("$device", ".*"),
    ("$probe", ".*"),
    ("$node", ".*"),
    ("$top", "10"),
];

/// The expression with values for Grafana's variables.
///
/// # Errors
/// When one is left that has none here.
pub fn substitute(expr: &str) -> Result<String> {
    let filled = VARIABLES.iter().fold(expr.to_owned(), |expr, (name, value)| expr.replace(name, value));
    if filled.contains('$') {
        return Err(anyhow!("`{expr}` has a variable that promql.rs has no value for"));
    }
    Ok(filled)
}

/// Parses PromQL.
///
/// # Errors
/// When it is none.
pub fn parse(expr: &str) -> Result<Expr> {
    parser::parse(expr).map_err(|error| anyhow!("`{expr}`: {error}"))
}

/// The names of all series that the expression reads.
pub fn names(expr: &Expr) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    visit(expr, &mut |part| {
        if let Expr::VectorSelector(selector) = part {
            // A selector without a name would read everything; it shows up as a name that nobody exports.
            names.insert(selector.name.clone().unwrap_or_default());
        }
    });
    names
}

/// The parts of an alert's expression that have a value also while all is well: both sides of each comparison, and what must not be
/// absent.
pub fn operands(expr: &Expr) -> Vec<Expr> {
    let mut found = Vec::new();
    gather(expr, &mut found);
    found
}

fn gather(expr: &Expr, found: &mut Vec<Expr>) {
    match expr {
        Expr::Paren(inner) => gather(&inner.expr, found),
        Expr::Binary(binary) if combines(binary) => {
            gather(&binary.lhs, found);
            gather(&binary.rhs, found);
        }
        Expr::Binary(binary) if filters(binary) => {
            let sides = [&binary.lhs, &binary.rhs].into_iter();
            found.extend(sides.filter(|side| !names(side).is_empty()).map(|side| (**side).clone()));
        }
        Expr::Call(call) if call.func.name == "absent" => {
            found.extend(call.args.args.iter().map(|argument| (**argument).clone()));
        }
        other => found.push(other.clone()),
    }
}

fn combines(binary: &BinaryExpr) -> bool {
    [token::T_LAND, token::T_LOR, token::T_LUNLESS].contains(&binary.op.id())
}

/// A comparison that drops what does not meet it.
fn filters(binary: &BinaryExpr) -> bool {
    binary.op.is_comparison_operator()
        && !binary.modifier.as_ref().is_some_and(|modifier| modifier.return_bool)
}

fn visit(expr: &Expr, see: &mut impl FnMut(&Expr)) {
    see(expr);
    match expr {
        Expr::Aggregate(aggregate) => {
            visit(&aggregate.expr, see);
            if let Some(param) = &aggregate.param {
                visit(param, see);
            }
        }
        Expr::Unary(unary) => visit(&unary.expr, see),
        Expr::Binary(binary) => {
            visit(&binary.lhs, see);
            visit(&binary.rhs, see);
        }
        Expr::Paren(paren) => visit(&paren.expr, see),
        Expr::Subquery(subquery) => visit(&subquery.expr, see),
        Expr::MatrixSelector(matrix) => see(&Expr::VectorSelector(matrix.vs.clone())),
        Expr::Call(call) => call.args.args.iter().for_each(|argument| visit(argument, see)),
        Expr::VectorSelector(_) | Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_wherever_they_stand() {
        let text =
            "topk(scalar(a), -sum(rate(b[5m])) / (c offset 1h) > bool d) or max_over_time((e > 1)[1h:1m])";
        assert_eq!(names(&parse(text).unwrap()), ["a", "b", "c", "d", "e"].map(str::to_owned).into());
    }

    #[test]
    fn operands_are_what_is_compared() {
        let text = "(a / b > 2 and on (node) (c == 1)) or d > bool 3 unless absent(e) and f > g";
        let found = operands(&parse(text).unwrap());
        let found: Vec<_> = found.iter().map(names).map(Vec::from_iter).collect();
        assert_eq!(found, [vec!["a", "b"], vec!["c"], vec!["d"], vec!["e"], vec!["f"], vec!["g"]]);
    }

    #[test]
    fn a_variable_without_a_value_is_refused() {
        assert_eq!(
            substitute("rate(a{node=~\"$node\"}[$__rate_interval])").unwrap(),
            "rate(a{node=~\".*\"}[20s])"
        );
        assert!(substitute("a{b=\"$c\"}").is_err());
    }
}
