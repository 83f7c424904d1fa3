package proc

import "testing"

func TestParseStat(t *testing.T) {
	rest := " S 1 2 3 0 -1 4194560 1 0 0 0 11 22 0 0 20 0 1 0 12345 99 0"
	for _, name := range []string{"(sh)", "(a) S 9 (b)", "())", "( )"} {
		st, err := parseStat([]byte("42 " + name + rest + "\n"))
		if err != nil || st != (stat{state: 'S', utime: 11, stime: 22, start: 12345}) {
			t.Errorf("%s: %+v, %v", name, st, err)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("1 (x) S 1 2 3 0 -1 4194560 1 0 0 0 11 22 0 0 20 0 1 0 12345 99 0"))
	f.Add([]byte("1 (x) S 1"))
	f.Add([]byte(")"))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := parseStat(b)
		if err != nil && st != (stat{}) {
			t.Errorf("an error with a result: %+v", st)
		}
	})
}
