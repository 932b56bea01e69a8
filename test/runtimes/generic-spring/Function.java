package function;

import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.http.ResponseEntity;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.RequestMapping;
import org.springframework.web.bind.annotation.RequestParam;
import org.springframework.web.bind.annotation.RestController;

/** A Spring Boot function with Micrometer, metrics at the actuator's path of the function's own port. */
@SpringBootApplication
@RestController
public class Function {
    public static void main(String[] args) {
        SpringApplication.run(Function.class, args);
    }

    @GetMapping("/healthz")
    String healthz() {
        return "OK";
    }

    @RequestMapping("/")
    ResponseEntity<String> call(@RequestParam(name = "sleep", defaultValue = "0") long sleep,
            @RequestParam(name = "fail", defaultValue = "0") int fail) throws InterruptedException {
        Thread.sleep(sleep);
        return ResponseEntity.status(fail == 0 ? 200 : 500).body("hello");
    }
}
