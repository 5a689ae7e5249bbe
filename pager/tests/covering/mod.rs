//! Few combinations of options in which every three values of different options come together.

/// Which three options, and their values, with the values of all options numbered one after the other.
type Triple = [usize; 3];

/// Combinations of options of which the one at `i` has `sizes[i]` values, as indices of values. Greedy: of all combinations the one with
/// the most triples that are not covered yet, the first of equals. So it is the same list each time.
pub(crate) fn covering(sizes: &[usize]) -> Vec<Vec<usize>> {
    let all: Vec<(Vec<usize>, Vec<Triple>)> = product(sizes)
        .into_iter()
        .map(|combination| {
            let triples = triples(sizes, &combination);
            (combination, triples)
        })
        .collect();
    let n_values: usize = sizes.iter().sum();
    let place = |&[a, b, c]: &Triple| (a * n_values + b) * n_values + c;
    let mut is_covered = vec![false; n_values.pow(3)];
    let mut chosen = Vec::new();
    loop {
        let mut best = (0, None);
        for (index, (_, triples)) in all.iter().enumerate() {
            let n_new = triples.iter().filter(|at| !is_covered[place(at)]).count();
            if n_new > best.0 {
                best = (n_new, Some(index));
            }
        }
        let (_, Some(index)) = best else {
            return chosen;
        };
        let (combination, triples) = &all[index];
        triples.iter().for_each(|at| is_covered[place(at)] = true);
        chosen.push(combination.clone());
    }
}

/// All combinations.
fn product(sizes: &[usize]) -> Vec<Vec<usize>> {
    sizes.iter().fold(vec![Vec::new()], |begun, &size| {
        let with = |combination: &Vec<usize>| {
            let combination = combination.clone();
            (0..size).map(move |value| [&combination[..], &[value]].concat())
        };
        begun.iter().flat_map(with).collect()
    })
}

fn triples(sizes: &[usize], combination: &[usize]) -> Vec<Triple> {
    let mut before = 0;
    let values: Vec<usize> = sizes
        .iter()
        .zip(combination)
        .map(|(size, value)| {
            before += size;
            before - size + value
        })
        .collect();
    let n = values.len();
    let pairs = (0..n).flat_map(|a| (a + 1..n).map(move |b| (a, b)));
    pairs
        .flat_map(|(a, b)| (b + 1..n).map(move |c| [a, b, c]))
        .map(|of| of.map(|option| values[option]))
        .collect()
}
