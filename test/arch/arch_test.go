// Package arch holds the tests of the tree's own rules: who may import whom, and that every package says what it is
// for.
package arch

import (
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/sluice-dev/sluice/"

// mayImport is the import table of docs/architecture.md: for each package of ours, the packages of ours that it may
// import. A name ending in /* stands for every package below.
var mayImport = map[string][]string{
	"api/v1alpha1":         {},
	"api/watches":          {},
	"providers":            {"api/v1alpha1"},
	"providers/*":          {"api/v1alpha1", "api/watches", "providers"},
	"adapter":              {"api/v1alpha1", "providers"},
	"scaler":               {"api/v1alpha1", "api/watches"},
	"activator":            {"api/v1alpha1", "api/watches"},
	"cmd/activator":        {"api/v1alpha1", "activator"},
	"cmd/scaler":           {"api/v1alpha1", "scaler"},
	"cmd/adapter":          {"api/v1alpha1", "adapter", "providers", "providers/*"},
	"test/function":        {},
	"test/load":            {},
	"test/load/*":          {"test/load"},
	"test/demo":            {"api/v1alpha1", "test/load"},
	"test/arch":            {},
	"test/port":            {},
	"test/prometheus":      {"api/v1alpha1", "providers", "providers/prometheus", "test/port"},
	"test/prometheus/find": {"test/prometheus"},
	"test/kafka":           {"api/v1alpha1", "providers", "providers/kafka", "test/port"},
	"test/kafka/find":      {"test/kafka"},
	"test/bench/*": {
		"api/v1alpha1", "activator", "adapter", "providers", "providers/*", "test/cluster", "test/kafka", "test/port", "test/bench/world",
		"test/bench/kafka/subject",
	},
	"test/e2e":   {"api/v1alpha1", "test/load", "test/prometheus", "test/kafka", "test/cluster"},
	"test/e2e/*": {"api/v1alpha1", "adapter", "providers", "providers/*", "scaler", "test/cluster"},
}

func TestImportTable(t *testing.T) {
	for _, f := range goFiles(t) {
		pkg := path.Dir(f.name)
		if strings.HasPrefix(pkg, "test/cluster") || strings.HasPrefix(pkg, "test/runtimes") {
			continue // modules of their own, which import nothing of this one
		}
		allowed, known := lookup(pkg)
		if !known {
			t.Errorf("%s: package %s is not in the import table; add it to test/arch and docs/architecture.md, or merge it", f.name, pkg)
			continue
		}
		for _, imp := range f.imports {
			ours, found := strings.CutPrefix(imp, module)
			if found && ours != pkg && !matches(allowed, ours) {
				t.Errorf("%s imports %s, which the import table does not allow for %s", f.name, ours, pkg)
			}
		}
	}
}

// forTests are modules that no program may link: only tests and what is below test may import them.
var forTests = []string{"github.com/twmb/franz-go"}

func TestProgramsLinkNothingThatIsForTests(t *testing.T) {
	for _, f := range goFiles(t) {
		if strings.HasPrefix(f.name, "test/") || strings.HasSuffix(f.name, "_test.go") {
			continue
		}
		for _, imp := range f.imports {
			if slices.ContainsFunc(forTests, func(m string) bool { return imp == m || strings.HasPrefix(imp, m+"/") }) {
				t.Errorf("%s imports %s, which is for tests", f.name, imp)
			}
		}
	}
}

func TestPackagesSayWhatTheyAreFor(t *testing.T) {
	documented := map[string]bool{}
	for _, f := range goFiles(t) {
		dir := path.Dir(f.name)
		documented[dir] = documented[dir] || f.doc
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s: no file has a package comment; say what the package hides", dir)
		}
	}
}

func TestImportTableNamesNothingThatIsGone(t *testing.T) {
	dirs := map[string]bool{}
	for _, f := range goFiles(t) {
		dirs[path.Dir(f.name)] = true
	}
	for pkg := range mayImport {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(dirs)), func(dir string) bool { return match(pkg, dir) }) {
			t.Errorf("the import table names %s, which does not exist", pkg)
		}
	}
}

// Every metric that the code names is explained in docs/operations.md.
func TestMetricsAreDocumented(t *testing.T) {
	root := filepath.Join("..", "..")
	doc, err := os.ReadFile(filepath.Join(root, "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`"(sluice_[a-z_]+)"`)
	found := 0
	for _, f := range goFiles(t) {
		if strings.HasPrefix(f.name, "test/") || strings.HasSuffix(f.name, "_test.go") {
			continue
		}
		source, err := os.ReadFile(filepath.Join(root, f.name))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range name.FindAllSubmatch(source, -1) {
			found++
			if !strings.Contains(string(doc), "`"+string(m[1])+"`") {
				t.Errorf("%s: metric %s is not in docs/operations.md", f.name, m[1])
			}
		}
	}
	if found == 0 {
		t.Error("found no metric in the code: the test is wrong")
	}
}

type goFile struct {
	name    string // relative to the root of the repository, with slashes
	imports []string
	doc     bool
}

func goFiles(t *testing.T) []goFile {
	t.Helper()
	root := filepath.Join("..", "..")
	var files []goFile
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && name != root && d.Name() != ".." {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		f := goFile{name: filepath.ToSlash(rel), doc: parsed.Doc != nil}
		for _, imp := range parsed.Imports {
			p, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				return err
			}
			f.imports = append(f.imports, p)
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("found only %d Go files below %s: the walk is wrong", len(files), root)
	}
	return files
}

func lookup(pkg string) ([]string, bool) {
	if allowed, ok := mayImport[pkg]; ok {
		return allowed, true
	}
	for pattern, allowed := range mayImport {
		if match(pattern, pkg) {
			return allowed, true
		}
	}
	return nil, false
}

func matches(patterns []string, pkg string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return match(p, pkg) })
}

func match(pattern, pkg string) bool {
	if below, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(pkg, below)
	}
	return pattern == pkg
}
