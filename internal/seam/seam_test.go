package seam

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const testSource = `package p

import (
	"fmt"
	"time"

	"example.com/other"
)

type T struct {
	a   int // first
	bcd string
}

type Empty struct{}

// New returns a T.
func New() *T {
	t := &T{}
	for i := range 3 {
		t.a += i
	} // done
	if t.a == 0 && t.bcd == "" {
		return nil
	}
	if t.a == 1 ||
		t.a == 2 {
		fmt.Println( "layout" )
	}
	return t
}

// Run runs.
func (t *T) Run(n int) (string, error) {
	start := time.Now()
	if n < 0 {
		return "", fmt.Errorf("negative")
	}
	twice(n)
	twice(n)
	if n > 0 {
		fmt.Println("tail", other.Name)
	}
	return fmt.Sprint(start), nil
}

func twice(n int) {}
`

// files returns the files of a package in which seams can match only src.
func files(src string) map[string][]byte {
	return map[string][]byte{"p.go": []byte(src), "p_test.go": []byte("package p\n\nfunc New() {}\n"), "note.txt": []byte("?")}
}

// gofmtSource is testSource in the layout of gofmt. One call in testSource has another
// layout on purpose, because matching must not depend on it.
var gofmtSource = func() string {
	s := testSource
	return replaceOnce(s, `fmt.Println( "layout" )`, `fmt.Println("layout")`)
}()

func replaceOnce(s, a, b string) string {
	for i := range len(s) - len(a) + 1 {
		if s[i:i+len(a)] == a {
			return s[:i] + b + s[i+len(a):]
		}
	}
	panic("not found: " + a)
}

func TestApply(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		seam Seam
		from string // part of the source
		to   string // what it becomes
		line int
	}{
		{
			name: "add a field",
			seam: Seam{In: "T", AddField: "added func()"},
			from: "\tbcd string\n}", to: "\tbcd string\n\n\tadded func()\n}", line: 13,
		},
		{
			name: "add a field to an empty struct",
			seam: Seam{In: "Empty", AddField: "added func()"},
			from: "type Empty struct{}", to: "type Empty struct {\n\tadded func()\n}", line: 15,
		},
		{
			name: "rename a function",
			seam: Seam{In: "New", Rename: "newT"},
			from: "func New()", to: "func newT()", line: 18,
		},
		{
			name: "rename a method",
			seam: Seam{In: "T.Run", Rename: "run"},
			from: "func (t *T) Run(", to: "func (t *T) run(", line: 34,
		},
		{
			name: "rename a type",
			seam: Seam{In: "Empty", Rename: "empty"},
			from: "type Empty", to: "type empty", line: 15,
		},
		{
			name: "replace a call",
			seam: Seam{In: "New", ReplaceCall: `fmt.Println( "layout")`, With: "log(t)"},
			from: `fmt.Println("layout")`, to: "log(t)", line: 28,
		},
		{
			name: "replace what is called",
			seam: Seam{In: "T.Run", ReplaceCall: "time.Now", With: "time.Unix"},
			from: "time.Now()", to: "time.Unix()", line: 35,
		},
		{
			name: "insert a block",
			seam: Seam{In: "New", InsertAfter: "for i := range 3 {", With: "if t.a > 1 {\n  return nil\n}\n"},
			from: "\t} // done\n", to: "\t} // done\n\tif t.a > 1 {\n\t\treturn nil\n\t}\n", line: 20,
		},
		{
			name: "insert after a block with a comment behind it",
			seam: Seam{In: "New", InsertAfter: "for i := range 3 {", With: "t.check()"},
			from: "\t} // done\n", to: "\t} // done\n\tt.check()\n", line: 20,
		},
		{
			name: "insert after a statement in a block",
			seam: Seam{In: "T.Run", InsertAfter: `return "", fmt.Errorf("negative")`, With: "panic(n)"},
			from: "negative\")\n", to: "negative\")\n\t\tpanic(n)\n", line: 37,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tc.seam.Name, tc.seam.Why = "test", "because"
			changed, matches, err := Apply("p", files(gofmtSource), []*Seam{&tc.seam})
			require.NoError(t, err)
			require.Len(t, changed, 1)
			require.Equal(t, replaceOnce(gofmtSource, tc.from, tc.to), string(changed["p.go"]))
			require.Equal(t, []Match{{Seam: &tc.seam, File: "p.go", Line: tc.line}}, matches)
		})
	}
}

func TestApplySplit(t *testing.T) {
	t.Parallel()
	changed, _, err := Apply("p", files(gofmtSource), []*Seam{
		{Name: "split", In: "T.Run", Split: &Split{Rename: "prepare", Result: "*T", From: "if n > 0 {", With: "return t, nil"}},
		{Name: "in the same function", In: "T.Run", ReplaceCall: "time.Now", With: "now"},
	})
	require.NoError(t, err)
	got := string(changed["p.go"])
	require.Contains(t, got, `func (t *T) prepare(n int) (*T, error) {
	start := now()
	if n < 0 {
		return "", fmt.Errorf("negative")
	}
	twice(n)
	twice(n)
	return t, nil
}
`)
	require.Contains(t, got, "import (\n\t\"fmt\"\n)\n", "imports that are not used any more go")
}

func TestApplyDropsFirstImports(t *testing.T) {
	t.Parallel()
	src := "package p\n\nimport (\n\t\"fmt\"\n\n\t\"example.com/other\"\n)\n\nfunc F() { fmt.Println() }\n\nfunc G() { other.G() }\n"
	changed, _, err := Apply("p", map[string][]byte{"p.go": []byte(src)}, []*Seam{{Name: "print", In: "F", ReplaceCall: "fmt.Println", With: "println"}})
	require.NoError(t, err)
	require.Equal(t, "package p\n\nimport (\n\t\"example.com/other\"\n)\n\nfunc F() { println() }\n\nfunc G() { other.G() }\n", string(changed["p.go"]))
}

func TestApplyDropsAllImports(t *testing.T) {
	t.Parallel()
	src := "package p\n\nimport (\n\t\"fmt\"\n)\n\ntype T int\n\nfunc F() { fmt.Println() }\n"
	changed, _, err := Apply("p", map[string][]byte{"p.go": []byte(src)}, []*Seam{{Name: "print", In: "F", ReplaceCall: "fmt.Println", With: "println"}})
	require.NoError(t, err)
	require.Equal(t, "package p\n\ntype T int\n\nfunc F() { println() }\n", string(changed["p.go"]))
}

func TestLocate(t *testing.T) {
	t.Parallel()
	places, err := Locate("p", files(gofmtSource), []*Seam{
		{Name: "held", In: "T.Run", Rename: "run"},
		{Name: "no declaration", In: "Nothing", Rename: "x"},
		{Name: "no statement", In: "New", InsertAfter: "x := 1", With: "f()"},
	})
	require.NoError(t, err)
	require.NoError(t, places[0].Err)
	require.Equal(t, "p.go", places[0].Match.File)
	require.Equal(t, 34, places[0].Match.Line)
	require.True(t, strings.HasPrefix(places[0].Declaration, "func (t *T) Run("), places[0].Declaration)
	require.ErrorContains(t, places[1].Err, "declaration Nothing not found")
	require.Nil(t, places[1].Match)
	require.Empty(t, places[1].Declaration)
	require.ErrorContains(t, places[2].Err, `"statement x := 1" not found`)
	require.True(t, strings.HasPrefix(places[2].Declaration, "func New("), "the declaration is there to be read")
}

func TestApplyErrors(t *testing.T) {
	t.Parallel()
	twice := gofmtSource + "\nfunc New2() {}\n\ntype U struct{}\n\nfunc (U) Run() {}\n"
	for _, tc := range []struct {
		name  string
		src   string
		seams []*Seam
		err   string
	}{
		{name: "no declaration", seams: []*Seam{{In: "Nothing", Rename: "x"}}, err: `seam test in package p: declaration Nothing not found`},
		{name: "method of another type", src: twice, seams: []*Seam{{In: "V.Run", Rename: "x"}}, err: "declaration V.Run not found, there is T.Run at p/p.go:34, U.Run at p/p.go:"},
		{name: "two declarations", src: gofmtSource + "\nfunc New() {}\n", seams: []*Seam{{In: "New", Rename: "x"}}, err: "declaration New found 2 times: p/p.go:18, p/p.go:49"},
		{name: "no call", seams: []*Seam{{In: "New", ReplaceCall: "f()", With: "g()"}}, err: `"call f()" not found in New at p/p.go:18`},
		{name: "two calls", seams: []*Seam{{In: "T.Run", ReplaceCall: "twice(n)", With: "g()"}}, err: `"call twice(n)" found 2 times: p/p.go:39, p/p.go:40, in T.Run at p/p.go:34`},
		{name: "two calls of a function", seams: []*Seam{{In: "T.Run", ReplaceCall: "twice", With: "g"}}, err: "found 2 times"},
		{name: "a call that is no code", seams: []*Seam{{In: "T.Run", ReplaceCall: "f(", With: "g"}}, err: `replace-call "f("`},
		{name: "no statement", seams: []*Seam{{In: "New", InsertAfter: "x := 1", With: "f()"}}, err: `"statement x := 1" not found in New at p/p.go:18`},
		{name: "two statements", seams: []*Seam{{In: "T.Run", InsertAfter: "twice(n)", With: "f()"}}, err: "found 2 times"},
		{name: "a statement with code behind it", src: "package p\n\nfunc New() {\n\tf(func() { g() })\n}\n", seams: []*Seam{{In: "New", InsertAfter: "g()", With: "h()"}}, err: `statement "g()" at p/p.go:4 has "})" behind it on its line`},
		{name: "split in a block", seams: []*Seam{{In: "New", Split: &Split{Rename: "x", Result: "int", From: "return nil", With: "return 1"}}}, err: "not in the outermost block"},
		{name: "split without result", seams: []*Seam{{In: "twice", Split: &Split{Rename: "x", Result: "int", From: "f()", With: "return 1"}}}, err: "has no result"},
		{name: "not a struct", seams: []*Seam{{In: "New", AddField: "a int"}}, err: "New at p/p.go:18 is not a struct"},
		{name: "fields on one line", src: "package p\n\ntype T struct{ a int }\n", seams: []*Seam{{In: "T", AddField: "b int"}}, err: "T at p/p.go:3 has its fields on one line"},
		{name: "not a function", seams: []*Seam{{In: "T", ReplaceCall: "f()", With: "g()"}}, err: "is not a function"},
		{name: "the same place twice", seams: []*Seam{{In: "New", Rename: "a"}, {In: "New", Rename: "b"}}, err: "seams test and test change the same code"},
		{name: "not Go", seams: []*Seam{{In: "New", ReplaceCall: `fmt.Println("layout")`, With: "if"}}, err: "does not parse after seams test"},
		{name: "not formatted", seams: []*Seam{{In: "New", ReplaceCall: `fmt.Println("layout")`, With: "f( 1 )"}}, err: "is not formatted after seams test"},
		{name: "broken source", src: "package", seams: []*Seam{{In: "New", Rename: "a"}}, err: "failed to parse package p"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			src := gofmtSource
			if tc.src != "" {
				src = tc.src
			}
			for _, s := range tc.seams {
				s.Name = "test"
			}
			changed, _, err := Apply("p", files(src), tc.seams)
			require.ErrorContains(t, err, tc.err)
			require.Nil(t, changed)
		})
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	const ok = "seams:\n- {name: a, package: p, in: T, why: w, add-field: f int}\n"
	l, err := Parse([]byte("releases: {v1.0.0: h1:x}\n" + ok))
	require.NoError(t, err)
	require.Equal(t, map[string]string{"v1.0.0": "h1:x"}, l.Releases)
	op, arg := l.Seams[0].Operation()
	require.Equal(t, []string{"add-field", "f int"}, []string{op, arg})
	found, err := l.Find("")
	require.NoError(t, err)
	require.Same(t, l.Seams[0], found.Seams[0])
	_, err = l.Find("other")
	require.ErrorContains(t, err, `no module "other", there are `)

	// another module can have seams and releases of the same names
	const other = "modules:\n  other:\n    path: example.com/other\n    releases: {v1.0.0: h1:y}\n    seams:\n    - {name: a, package: q, in: U, why: w, rename: u}\n"
	l, err = Parse([]byte("releases: {v1.0.0: h1:x}\n" + ok + other))
	require.NoError(t, err)
	require.Equal(t, map[string]string{"v1.0.0": "h1:x"}, l.Releases)
	require.Equal(t, "T", l.Seams[0].In)
	found, err = l.Find("other")
	require.NoError(t, err)
	require.Equal(t, "example.com/other", found.Path)
	require.Equal(t, map[string]string{"v1.0.0": "h1:y"}, found.Releases)
	require.Equal(t, "U", found.Seams[0].In)
	_, err = l.Find("gone")
	require.EqualError(t, err, `no module "gone", there are other`)

	for in, want := range map[string]string{
		"seams:\n- {package: p}\n":                                                      "seam 1 has no name",
		ok + "- {name: a, package: p, in: T, why: w, add-field: f int}\n":               "seam a is listed twice",
		"seams:\n- {name: a, package: p, in: T, add-field: f int}\n":                    "seam a: why is missing",
		"seams:\n- {name: a, package: p, in: '(*T).M', why: w, rename: m}\n":            "name a declaration as Name or Type.Method",
		"seams:\n- {name: a, package: p, in: T, why: w}\n":                              "exactly one operation, found 0",
		"seams:\n- {name: a, package: p, in: T, why: w, rename: x, add-field: f int}\n": "exactly one operation, found 2 [add-field rename]",
		"seams:\n- {name: a, package: p, in: T, why: w, rename: x.y}\n":                 "give the new name only",
		"seams:\n- {name: a, package: p, in: T, why: w, rename: x, with: y}\n":          "rename takes no with",
		"seams:\n- {name: a, package: p, in: T, why: w, replace-call: f}\n":             "replace-call needs the new code in with",
		"seams:\n- {name: a, package: p, in: T, why: w, split: {from: c, rename: b}}\n": "split needs rename, result, from and with",
		"seams:\n- {name: a, package: p, in: T, why: w, typo: b}\n":                     "field typo not found",
		"":                                      "it is empty: releases and seams are missing",
		"# nothing\n":                           "it is empty: releases and seams are missing",
		"seams: [1":                             "did not find expected",
		"path: example.com\n":                   "path is for modules other than BuildKit",
		"modules: {other: }\n":                  `module "other" needs a path`,
		"modules: {a/b: {path: example.com}}\n": `module "a/b" needs a path, and the name of a folder`,
		"modules: {a: {path: example.com, modules: {}}}\n": "field modules not found",
		"modules: {a: {path: example.com, seams: [{}]}}\n": "module a: seam 1 has no name",
	} {
		_, err := Parse([]byte(in))
		require.ErrorContains(t, err, want, in)
	}

	path := filepath.Join(t.TempDir(), "seams.yaml")
	require.NoError(t, os.WriteFile(path, []byte("seams:\n- {}\n"), 0o600))
	_, err = Load(path)
	require.ErrorContains(t, err, "invalid seam list "+path)
}

// FuzzApply applies seams with arbitrary patterns to arbitrary sources. The result must
// be an error or a file, never a panic.
func FuzzApply(f *testing.F) {
	f.Add(gofmtSource, "New", "twice(n)", "f()")
	f.Add(gofmtSource, "T.Run", "if n > 0 {", "return nil, nil")
	f.Add("package p\nfunc F() { if true {} }\n", "F", "true", "&& f()")
	f.Add("package p\ntype T struct{ a int }\n", "T", "b int", "")
	f.Fuzz(func(_ *testing.T, src, in, pattern, with string) {
		for _, s := range []*Seam{
			{AddField: pattern},
			{Rename: pattern},
			{ReplaceCall: pattern, With: with},
			{InsertAfter: pattern, With: with},
			{Split: &Split{Rename: pattern, Result: with, From: pattern, With: with}},
		} {
			s.Name, s.In = "fuzz", in
			Apply("p", map[string][]byte{"p.go": []byte(src)}, []*Seam{s})
		}
	})
}
