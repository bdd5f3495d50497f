// Linreg is linreg.py in Go, for the kinds that are no Python: it fits price = a + b*area + c*rooms to the CSV files in ./datasets by least
// squares; the fit goes to ./results. It builds as a static program and as a module for WASI.
package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	entries, err := os.ReadDir("datasets")
	if err != nil {
		return err
	}
	var m [3][4]float64 // the normal equations, and what they are equal to
	samples := 0
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".csv") {
			continue
		}
		points, err := read(path.Join("datasets", e.Name()))
		if err != nil {
			return err
		}
		for _, p := range points {
			for i := range 3 {
				for j := range 4 {
					m[i][j] += p[i] * p[j]
				}
			}
		}
		samples += len(points)
	}
	if samples == 0 {
		return errors.New("no CSV file in ./datasets")
	}
	x := solve(m)
	fit := fmt.Sprintf("{\n  \"intercept\": %v,\n  \"area\": %v,\n  \"rooms\": %v,\n  \"samples\": %d\n}\n", x[0], x[1], x[2], samples)
	fmt.Printf("fitted %d samples\n", samples)
	return os.WriteFile("results/coefficients.json", []byte(fit), 0o644)
}

// read gives a row of 1, area, rooms and price for each line of a file with these columns.
func read(name string) ([][4]float64, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	case len(rows) == 0 || len(rows[0]) != 3:
		return nil, fmt.Errorf("%s: want area, rooms and price", name)
	}
	points := make([][4]float64, len(rows)-1)
	for i, row := range rows[1:] {
		points[i][0] = 1
		for j, s := range row {
			if points[i][j+1], err = strconv.ParseFloat(s, 64); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return points, nil
}

// solve is Gaussian elimination with partial pivoting.
func solve(m [3][4]float64) (x [3]float64) {
	for i := range 3 {
		p := i
		for r := i + 1; r < 3; r++ {
			if math.Abs(m[r][i]) > math.Abs(m[p][i]) {
				p = r
			}
		}
		m[i], m[p] = m[p], m[i]
		for r := i + 1; r < 3; r++ {
			f := m[r][i] / m[i][i]
			for c := range 4 {
				m[r][c] -= f * m[i][c]
			}
		}
	}
	for i := 2; i >= 0; i-- {
		x[i] = m[i][3]
		for k := i + 1; k < 3; k++ {
			x[i] -= m[i][k] * x[k]
		}
		x[i] /= m[i][i]
	}
	return x
}
