//! A table of sums whose columns grow wider as there is more to hold.

/// Sums by row and by a position that only has a lower end, such as a time or the number of a step. It starts with
/// columns of one unit each; whenever a position lies behind the last column, neighbours are added up in pairs. So
/// its size is bounded, whatever comes.
#[derive(Debug, Clone)]
pub(crate) struct Grid {
    n_rows: usize,
    n_columns: usize,
    /// A column has 2^shift units.
    shift: u32,
    /// Row by row.
    sums: Vec<u64>,
    /// Columns up to the last one in use.
    n_used: usize,
}

impl Grid {
    /// `n_columns` is even. The first columns have `2^shift` units.
    pub(crate) fn new(n_rows: usize, n_columns: usize, shift: u32) -> Grid {
        Grid {
            n_rows,
            n_columns,
            shift,
            sums: vec![0; n_rows * n_columns],
            n_used: 0,
        }
    }

    #[inline]
    pub(crate) fn add(&mut self, row: usize, position: u64, value: u64) {
        let mut column = position >> self.shift;
        while column >= self.n_columns as u64 {
            self.fold();
            column = position >> self.shift;
        }
        let column = column as usize;
        self.n_used = self.n_used.max(column + 1);
        let sum = &mut self.sums[row * self.n_columns + column];
        *sum = sum.saturating_add(value);
    }

    #[cold]
    fn fold(&mut self) {
        for row in self.sums.chunks_exact_mut(self.n_columns) {
            for column in 0..row.len() / 2 {
                row[column] = row[2 * column].saturating_add(row[2 * column + 1]);
            }
            let half = row.len() / 2;
            row[half..].fill(0);
        }
        self.shift += 1;
        self.n_used = self.n_used.div_ceil(2);
    }

    /// Units of a column.
    pub(crate) fn width(&self) -> u64 {
        1 << self.shift
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub(crate) fn n_used(&self) -> usize {
        self.n_used
    }

    /// The columns of a row that are in use.
    pub(crate) fn row(&self, row: usize) -> &[u64] {
        let first = row * self.n_columns;
        &self.sums[first..first + self.n_used]
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = &[u64]> {
        (0..self.n_rows).map(|row| self.row(row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_when_columns_are_joined() {
        let mut grid = Grid::new(2, 8, 0);
        for position in 0..100 {
            grid.add((position % 2) as usize, position, position);
        }
        assert_eq!((grid.width(), grid.n_used()), (16, 7));
        let sums: Vec<u64> = grid.rows().map(|row| row.iter().sum()).collect();
        assert_eq!(sums, [2450, 2500]);
        assert_eq!(grid.row(0)[0], 2 + 4 + 6 + 8 + 10 + 12 + 14);
    }

    #[test]
    fn a_position_far_away_is_held() {
        let mut grid = Grid::new(1, 4, 10);
        grid.add(0, u64::MAX, 1);
        grid.add(0, 0, u64::MAX);
        grid.add(0, 1, 1);
        assert_eq!(grid.row(0)[0], u64::MAX);
        assert_eq!(grid.row(0).iter().filter(|sum| **sum == 1).count(), 1);
    }
}
