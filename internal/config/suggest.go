package config

import "strings"

// closest gives the known key nearest to key, or "" when none is near: at most
// a third of it may differ.
func closest(key string, known []string) string {
	best, bestD := "", len(key)/3+1
	for _, k := range known {
		d := distance(key, k)
		if last := k[strings.LastIndexByte(k, '.')+1:]; last != k {
			d = min(d, distance(key, last)+1)
		}
		if d < bestD {
			best, bestD = k, d
		}
	}
	return best
}

// distance is the number of single-character edits between two words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			prev, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, prev+cost)
		}
	}
	return row[len(b)]
}
