package units

import "testing"

func TestParseSize(t *testing.T) {
	good := map[string]int64{
		"0": 0, "512": 512, "512B": 512, "512M": 512 * MiB, "2G": 2 * GiB, "2g": 2 * GiB,
		"1.5GiB": 3 * GiB / 2, "1T": TiB, "64 MiB": 64 * MiB, "4kb": 4 * KiB,
	}
	for in, want := range good {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "M", "-1G", "1e9", "0x10", "2X", "nan", "inf", "9999999T", "1_000", "+5", "1,5G", "٣G"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("ParseSize(%q) = %d; want an error", in, got)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for in, want := range map[int64]string{
		0: "0B", 1023: "1023B", 512 * KiB: "512K", 61 * MiB: "61M", 2 * GiB: "2.0G", 20 * GiB: "20G",
		1100 * MiB: "1.1G", -5 * GiB: "-5.0G", 3 * TiB: "3.0T",
	} {
		if got := FormatSize(in); got != want {
			t.Errorf("FormatSize(%d) = %q; want %q", in, got, want)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"512M", "1.5GiB", "-1", "9e99T", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := ParseSize(s); err == nil && n < 0 {
			t.Fatalf("ParseSize(%q) = %d", s, n)
		}
	})
}
