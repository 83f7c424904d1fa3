// Package units reads and writes sizes as people write them: 512M, 2G, 1.5GiB.
// Sizes are binary throughout (1K is 1024 bytes), as docker and qemu take them.
package units

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Sizes in bytes.
const (
	KiB int64 = 1 << 10
	MiB int64 = 1 << 20
	GiB int64 = 1 << 30
	TiB int64 = 1 << 40
)

// ParseSize reads a size in bytes: a positive number, with a fraction if
// wanted, and one of B, K, M, G, T (also as KB or KiB, in either case). A bare
// number is bytes. It refuses what does not fit in an int64.
func ParseSize(s string) (int64, error) {
	t := strings.TrimSpace(s)
	num := strings.TrimRight(t, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	unit := strings.ToLower(t[len(num):])
	num = strings.TrimSpace(num)
	f, err := strconv.ParseFloat(num, 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) || f < 0 || strings.ContainsAny(num, "xXpPeE_+") {
		return 0, fmt.Errorf("%q is no size: write it as 512M, 2G or 1.5GiB", s)
	}
	var mult int64
	switch unit {
	case "", "b":
		mult = 1
	case "k", "kb", "kib":
		mult = KiB
	case "m", "mb", "mib":
		mult = MiB
	case "g", "gb", "gib":
		mult = GiB
	case "t", "tb", "tib":
		mult = TiB
	default:
		return 0, fmt.Errorf("%q has no unit that is known: use K, M, G or T", s)
	}
	v := f * float64(mult)
	if v >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is too large", s)
	}
	return int64(v), nil
}

// FormatSize writes bytes for people: at most four characters of number and
// one letter of unit, as in 61M, 2.0G, 512K.
func FormatSize(n int64) string {
	if n < 0 {
		return "-" + FormatSize(-n)
	}
	if n < KiB {
		return strconv.FormatInt(n, 10) + "B"
	}
	v, unit := float64(n), ""
	for _, u := range []string{"K", "M", "G", "T", "P"} {
		v /= 1024
		unit = u
		if v < 999.5 {
			break
		}
	}
	if v < 9.95 && unit != "K" {
		return strconv.FormatFloat(v, 'f', 1, 64) + unit
	}
	return strconv.FormatFloat(v, 'f', 0, 64) + unit
}

// Size is a number of bytes that reads itself from text as ParseSize does.
type Size int64

// UnmarshalText reads a size.
func (s *Size) UnmarshalText(b []byte) error {
	n, err := ParseSize(string(b))
	if err != nil {
		return err
	}
	*s = Size(n)
	return nil
}

// MarshalText writes whole bytes, so that nothing is lost.
func (s Size) MarshalText() ([]byte, error) { return []byte(strconv.FormatInt(int64(s), 10)), nil }

// String writes the size for people.
func (s Size) String() string { return FormatSize(int64(s)) }
